#include "backends/cuda/backend.h"

#include <algorithm>
#include <cstdlib>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/copy_blocks.h"
#include "backends/cuda/kernels/draw.h"
#include "backends/cuda/kernels/rotary.h"
#include "backends/cuda/kernels/route.h"
#include "backends/cuda/kernels/rows.h"
#include "backends/cuda/kernels/sample.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/plan/tactics.h"
#include "base/clock.h"

namespace ostro::cuda {
namespace {

constexpr int kCapability = 9;  // Hopper: wgmma

std::string version(int number) { return text(number / 1000, '.', number % 1000 / 10); }

void check_driver() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return;
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  OSTRO_SUPPORTED(driver > 0, "there is no NVIDIA driver here; CUDA ", version(runtime),
                  " needs one");
  OSTRO_SUPPORTED(status != cudaErrorInsufficientDriver, "the NVIDIA driver is for CUDA ",
                  version(driver), "; this build needs one for CUDA ", version(runtime));
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  OSTRO_SUPPORTED(
      status != cudaSuccess && status != cudaErrorNoDevice, "there is no GPU that CUDA may use",
      visible ? text(": CUDA_VISIBLE_DEVICES is \"", visible, '"') : " on this machine");
  OSTRO_CUDA(status);
}

int checked(int device) {
  check_driver();
  const int count = device_count();
  OSTRO_SUPPORTED(0 <= device && device < count, "there is no GPU ", device, "; there are ", count);
  return device;
}

// Whether a byte between the first element and the last of both may be one.
bool overlap(const View& a, const View& b) {
  const auto begin = [](const View& v) { return reinterpret_cast<std::uintptr_t>(v.data); };
  const auto end = [&](const View& v) {
    const std::int64_t elements = (v.rows - 1) * v.row_stride + v.cols;
    return begin(v) + std::uintptr_t(elements) * size_of(v.dtype);
  };
  return a && b && a.rows > 0 && b.rows > 0 && begin(a) < end(b) && begin(b) < end(a);
}

AttentionShape attention_shape(const ops::PagedAttention& op) {
  return {.tokens = op.q.rows,
          .requests = op.requests.count(),
          .heads = op.heads,
          .kv_heads = op.cache.kv_heads,
          .context = op.requests.block_table.cols * op.cache.block_tokens,
          .wgmma = attention_wgmma_takes(op),
          .decode = attention_decode_takes(op) ? decode_blocks(size_of(op.cache.k.dtype)) : 0};
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no device: not an error that later calls should see
  return 0;
}

bool has_driver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version > 0;
}

std::vector<std::string> device_identities() {
  std::vector<std::string> identities;
  for (int device = 0; device < device_count(); ++device) {
    cudaDeviceProp properties{};
    OSTRO_CUDA(cudaGetDeviceProperties(&properties, device));
    std::string& identity = identities.emplace_back();
    for (const char byte : properties.uuid.bytes)
      for (const int shift : {4, 0}) identity += "0123456789abcdef"[(byte >> shift) & 0xf];
  }
  return identities;
}

Stream::Stream(int device) {
  OSTRO_CUDA(cudaSetDevice(device));
  OSTRO_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaBackend::CudaBackend(int device)
    : device_(checked(device)), stream_(device), staging_(device, stream_) {
  cudaDeviceProp properties{};
  OSTRO_CUDA(cudaGetDeviceProperties(&properties, device));
  name_ = properties.name;
  processors_ = properties.multiProcessorCount;
  OSTRO_SUPPORTED(properties.major == kCapability, "GPU ", device, " is a ", name_,
                  " of compute capability ", properties.major, '.', properties.minor,
                  "; this build has kernels for ", kCapability, ".0");
  finished_ = allocate_device(sizeof(unsigned), stream_);
}

CudaBackend::~CudaBackend() { cudaStreamSynchronize(stream_); }

void CudaBackend::begin(const View& output) {
  OSTRO_REQUIRE(output.device == Device::cuda, describe(output), " is not in device memory");
  OSTRO_CUDA(cudaSetDevice(device_));
  staging_.finish();
  if (overlap(output, rounded_.from)) rounded_ = {};
}

Buffer CudaBackend::allocate(std::size_t bytes) {
  OSTRO_CUDA(cudaSetDevice(device_));
  return allocate_device(bytes, stream_);
}

quant::Weight CudaBackend::place(const quant::Weight& host) {
  const DType type = host.data.dtype;
  const bool scaled = type == DType::f8e4m3 || type == DType::i8 || type == DType::u8;
  OSTRO_SUPPORTED(is_float(type) ? !host.scale : scaled,
                  "CUDA has kernels for f32, f16, bf16, f8e4m3, i8 and u8 (int4) weights, not for ",
                  describe(host.data));
  return {.data = placed(host.data), .scale = host.scale ? placed(host.scale) : View{}};
}

View CudaBackend::placed(const View& host) {
  if (host.device == Device::cuda) return host;
  constexpr std::int64_t kRowAlign = 16;  // bytes: what the kernels load at once
  const auto size = std::int64_t(size_of(host.dtype));
  View view = host;
  view.device = Device::cuda;
  view.row_stride = round_up(host.cols * size, kRowAlign) / size;
  OSTRO_CUDA(cudaSetDevice(device_));
  const auto bytes = std::size_t(host.rows * view.row_stride * size);
  weights_.push_back(view.row_stride == host.cols ? allocate_uninitialised(bytes)
                                                  : allocate_device(bytes, stream_));
  view.data = weights_.back().data();
  staging_.upload(view.data, std::size_t(view.row_stride * size), host.data,
                  std::size_t(host.row_stride * size), std::size_t(host.cols * size),
                  std::size_t(host.rows));
  return view;
}

void CudaBackend::copy(const View& from, const View& to) {
  OSTRO_REQUIRE(same_shape(from, to) && from.dtype == to.dtype, "copy of ", describe(from), " to ",
                describe(to));
  OSTRO_REQUIRE(from.contiguous() && to.contiguous(), "copy needs contiguous matrices");
  OSTRO_REQUIRE(from.device == Device::cuda || to.device == Device::cuda,
                "copy between two host matrices on CUDA");
  if (from.bytes() == 0) return;
  OSTRO_CUDA(cudaSetDevice(device_));
  if (overlap(to, rounded_.from)) rounded_ = {};
  if (from.device == Device::cpu)
    return staging_.upload(to.data, from.bytes(), from.data, from.bytes(), from.bytes(), 1);
  staging_.finish();
  if (to.device == Device::cpu) {
    if (while_waiting_) wait();  // as the download would, deaf to other ranks
    staging_.download(to.data, from.data, from.bytes());
  } else
    OSTRO_CUDA(cudaMemcpyAsync(to.data, from.data, from.bytes(), cudaMemcpyDefault, stream_));
}

void CudaBackend::wait() {
  staging_.finish();
  if (!while_waiting_) return OSTRO_CUDA(cudaStreamSynchronize(stream_));
  const Stopwatch watch;
  while (true) {
    const cudaError_t status = cudaStreamQuery(stream_);
    if (status != cudaErrorNotReady) return OSTRO_CUDA(status);
    while_waiting_(watch.seconds());
  }
}

std::size_t scratch_bytes(const ops::Backend& backend) {
  OSTRO_CHECK(backend.device() == Device::cuda, backend.description(), " is no GPU");
  return static_cast<const CudaBackend&>(backend).scratch_bytes();
}

Queue queue_of(ops::Backend& backend) {
  OSTRO_CHECK(backend.device() == Device::cuda, backend.description(), " is no GPU");
  return static_cast<CudaBackend&>(backend).queue();
}

void while_waiting(ops::Backend& backend, std::function<void(double seconds)> turn) {
  OSTRO_CHECK(backend.device() == Device::cuda, backend.description(), " is no GPU");
  static_cast<CudaBackend&>(backend).while_waiting(std::move(turn));
}

std::string CudaBackend::description() const {
  return text(name_, ", ", processors_, " multiprocessors");
}

int CudaBackend::tile(const ops::Product& product, std::int64_t tokens) const {
  const auto chosen = tactics_.find(product, tokens);
  return chosen ? *chosen : planned_tile(product, tokens, processors_);
}

std::vector<ops::Tactic> CudaBackend::tactics(const ops::Product& product,
                                              std::int64_t tokens) const {
  std::vector<ops::Tactic> tiles = tiles_to_try(product, tokens);
  if (tiles.empty()) return {};
  const ops::Tactic first = tile(product, tokens);
  std::erase(tiles, first);
  tiles.insert(tiles.begin(), first);
  return tiles;
}

void CudaBackend::use(const ops::Tactics& table) {
  for (const auto& [product, by_tokens] : table.all()) {
    const std::vector<int> tiles = tiles_of(product);
    for (const auto& [tokens, tile] : by_tokens)
      OSTRO_REQUIRE(std::ranges::find(tiles, tile) != tiles.end(), describe(product),
                    ": there is no tile of ", tile, " tokens for it");
  }
  tactics_ = table;
}

std::size_t CudaBackend::free_memory_bytes() const {
  std::size_t free = 0, total = 0;
  OSTRO_CUDA(cudaSetDevice(device_));
  OSTRO_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaBackend::enqueue(const ops::Draw& op) {
  begin(op.y);
  draw(stream_, op);
}

void CudaBackend::enqueue(const ops::Embed& op) {
  begin(op.y);
  embed(stream_, op);
}

void CudaBackend::enqueue(const ops::GatherRows& op) {
  begin(op.y);
  gather_rows(stream_, op);
}

const E4m3Rows* CudaBackend::rounded_by(const ops::AddRmsNorm& op) {
  rounded_ = {};
  if (op.activations == ops::Activations::as_is || op.y.rows == 0 || op.y.cols == 0) return nullptr;
  rounded_ = {.from = op.y, .rows = e4m3_rows(x_e4m3_, op.y.rows, op.y.cols, 1)};
  return &rounded_.rows;
}

void CudaBackend::enqueue(const ops::AddRmsNorm& op) {
  begin(op.residual);
  add_rms_norm(stream_, op, rounded_by(op));
}

void CudaBackend::enqueue(const ops::RotaryAngles& op) {
  begin(op.cos_sin);
  rotary_angles(stream_, op);
}

void CudaBackend::enqueue(const ops::RotaryAppend& op) {
  begin(op.qkv);
  rotary_append(stream_, op);
}

void CudaBackend::enqueue(const ops::PagedAttention& op) {
  begin(op.y);
  if (!attention_mma_takes(op)) return attention_simple(stream_, op);
  if (single_apart(attention_shape(op), op.requests.single, op.cache.k.dtype == DType::f8e4m3)) {
    attend(single_part(op));
    attend(rest_part(op));
  } else {
    attend(op);
  }
}

void CudaBackend::attend(const ops::PagedAttention& op) {
  const AttentionPlan plan = plan_attention(attention_shape(op), processors_);
  float* const parts = attention_parts_.reserve<float>(attention_scratch(op, plan));
  attention_mma(stream_, op, plan, parts);
}

void CudaBackend::enqueue(const ops::CopyBlocks& op) {
  begin(op.kv);
  copy_blocks(stream_, op);
}

void CudaBackend::enqueue(const ops::Route& op) {
  begin(op.weights);
  route_prompts_takes(op) ? route_prompts(stream_, op) : route(stream_, op);
}

void CudaBackend::enqueue(const ops::Sample& op) {
  begin(op.tokens);
  sample(stream_, op);
}

std::unique_ptr<ops::Backend> make_backend(int device) {
  return std::make_unique<CudaBackend>(device);
}

}  // namespace ostro::cuda
