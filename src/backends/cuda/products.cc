// Linear and ExpertMlp: which kernel takes a product, and its tiles.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/moe.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

bool aligned(const quant::Weight& w) {
  constexpr std::uintptr_t kAlign = 16;
  return reinterpret_cast<std::uintptr_t>(w.data.data) % kAlign == 0 &&
         (w.n() <= 1 || std::uintptr_t(w.data.row_stride) * size_of(w.data.dtype) % kAlign == 0);
}

WeightRef ref(const quant::Weight& w) { return {w.data.data, w.data.row_stride}; }

void set_output(GemmArgs& args, const View& y) {
  constexpr std::uintptr_t kPack = 4;
  const std::uintptr_t bytes = kPack * size_of(y.dtype);
  args.y = y.data;
  args.y_stride = y.row_stride;
  args.y_is_f32 = y.dtype == DType::f32;
  args.y_in_packs = reinterpret_cast<std::uintptr_t>(y.data) % bytes == 0 &&
                    std::uintptr_t(y.row_stride) % kPack == 0;
}

// y = x w^T, or its SwiGLU with `up`, for rows that all have one weight.
void dense(cudaStream_t stream, int processors, const View& x, const quant::Weight& w,
           const quant::Weight* up, const View& y) {
  if (x.rows == 0 || w.n() == 0) return;
  OSTRO_SUPPORTED(!up || up->data.dtype == w.data.dtype,
                  "ExpertMlp on CUDA has kernels for gate and up of one type, not for ",
                  describe(w.data), " and ", describe(up->data));
  const bool tensor_cores = tensor_cores_take(x, w.data.dtype, aligned(w) && (!up || aligned(*up)));
  Gemm g{};
  g.token_tile = tensor_cores ? dense_tile(x.rows, w.n(), processors) : kSimpleTokenTile;
  g.args.x = x.data;
  g.args.x_stride = x.row_stride;
  g.args.weight = ref(w);
  if (up) g.args.up_weight = ref(*up);
  g.args.max_tiles = int(ceil_div<std::int64_t>(x.rows, g.token_tile));
  g.args.slots = x.rows;
  g.args.n = int(w.n());
  g.args.k = int(w.k());
  set_output(g.args, y);
  g.x_type = x.dtype;
  g.w_type = w.data.dtype;
  g.swiglu = up != nullptr;
  gemm(stream, g, tensor_cores);
}

// Hands out 16-byte aligned pieces of one allocation: once to count, then to cut.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}
  template <class T>
  T* take(std::int64_t elements) {
    const std::int64_t at = bytes_;
    bytes_ = round_up<std::int64_t>(bytes_ + elements * std::int64_t(sizeof(T)), 16);
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace

void CudaBackend::enqueue(const ops::Linear& op) {
  begin(op.y);
  dense(stream_, processors_, op.x, op.w, nullptr, op.y);
}

void CudaBackend::enqueue(const ops::ExpertMlp& op) {
  begin(op.y);
  if (op.x.rows == 0 || op.x.cols == 0) return;
  if (op.local.empty()) {
    OSTRO_CUDA(cudaMemset2DAsync(op.y.data, std::size_t(op.y.row_stride) * sizeof(float), 0,
                                 std::size_t(op.y.cols) * sizeof(float), std::size_t(op.y.rows),
                                 stream_));
    return;
  }
  op.experts ? routed_mlp(op) : dense_mlp(op);
}

void CudaBackend::dense_mlp(const ops::ExpertMlp& op) {
  const ops::Expert& expert = op.local.front();
  const std::int64_t inter = expert.gate.n();
  const auto size = std::int64_t(size_of(op.x.dtype));
  const std::int64_t stride = round_up<std::int64_t>(inter * size, 16) / size;
  View hidden = matrix(expert_hidden_.reserve<char>(op.x.rows * stride * size), op.x.dtype,
                       op.x.rows, inter, Device::cuda);
  hidden.row_stride = stride;
  dense(stream_, processors_, op.x, expert.gate, &expert.up, hidden);
  dense(stream_, processors_, hidden, expert.down, nullptr, op.y);
}

void CudaBackend::routed_mlp(const ops::ExpertMlp& op) {
  const std::int64_t experts = std::int64_t(op.local.size());
  OSTRO_SUPPORTED(experts <= kMostExperts, "ExpertMlp on CUDA has kernels for up to ", kMostExperts,
                  " local experts, not for ", experts);
  const ops::Expert& first = op.local.front();
  const DType weight_type = first.gate.data.dtype;
  bool all_aligned = true;
  for (const ops::Expert& e : op.local) {
    for (const auto& [w, like] :
         {std::pair{&e.gate, &first.gate}, {&e.up, &first.up}, {&e.down, &first.down}}) {
      OSTRO_SUPPORTED(w->data.dtype == weight_type && w->data.row_stride == like->data.row_stride,
                      "ExpertMlp on CUDA has kernels for experts of one type and row stride, not "
                      "for ",
                      describe(w->data), " beside ", describe(first.gate.data));
      all_aligned = all_aligned && aligned(*w);
    }
  }

  const std::int64_t tokens = op.x.rows, hidden = op.x.cols, inter = first.gate.n();
  const std::int64_t slots = tokens * op.experts.cols;
  if (slots == 0) return;
  const bool tensor_cores = tensor_cores_take(op.x, weight_type, all_aligned);
  Gemm g{};
  g.token_tile = tensor_cores ? expert_tile(tokens, op.experts.cols, experts) : kSimpleTokenTile;
  g.x_type = op.x.dtype;
  g.w_type = weight_type;
  const std::int64_t tiles = most_tiles(slots, experts, g.token_tile);

  ExpertGroups groups{};
  const auto carve = [&](Carver carver) {
    groups.gate = carver.take<WeightRef>(experts);
    groups.up = carver.take<WeightRef>(experts);
    groups.down = carver.take<WeightRef>(experts);
    groups.start = carver.take<std::int32_t>(experts + 1);
    groups.token = carver.take<std::int32_t>(slots);
    groups.slot_of = carver.take<std::int32_t>(slots);
    groups.tiles = carver.take<TokenTile>(tiles);
    groups.tile_count = carver.take<std::int32_t>(1);
    return carver.bytes();
  };
  carve(Carver(expert_index_.reserve<char>(carve(Carver(nullptr)))));
  group_by_expert(stream_, op, g.token_tile, groups);

  const auto size = std::int64_t(size_of(op.x.dtype));
  const std::int64_t stride = round_up<std::int64_t>(inter * size, 16) / size;
  View h = matrix(expert_hidden_.reserve<char>(slots * stride * size), op.x.dtype, slots, inter,
                  Device::cuda);
  h.row_stride = stride;
  float* const out = expert_out_.reserve<float>(slots * hidden);

  g.args.x = op.x.data;
  g.args.x_stride = op.x.row_stride;
  g.args.rows = groups.token;
  g.args.weights = groups.gate;
  g.args.up_weights = groups.up;
  g.args.tiles = groups.tiles;
  g.args.tile_count = groups.tile_count;
  g.args.max_tiles = int(tiles);
  g.args.slots = slots;
  g.args.n = int(inter);
  g.args.k = int(hidden);
  g.swiglu = true;
  set_output(g.args, h);
  if (inter > 0) gemm(stream_, g, tensor_cores);

  g.args.x = h.data;
  g.args.x_stride = h.row_stride;
  g.args.rows = nullptr;
  g.args.weights = groups.down;
  g.args.n = int(hidden);
  g.args.k = int(inter);
  g.swiglu = false;
  set_output(g.args, matrix(out, DType::f32, slots, hidden, Device::cuda));
  gemm(stream_, g, tensor_cores);
  combine_experts(stream_, op, groups.slot_of, out);
}

}  // namespace ostro::cuda
