#include "comm/nccl/peer_memory.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "backends/cuda/launch.h"
#include "backends/cuda/memory.h"
#include "base/clock.h"
#include "base/host.h"

namespace ostro::comm::nccl {
namespace {

// How long a sum of a few floats may take when it is tried.
constexpr double kTrialSeconds = 10;
constexpr std::int64_t kTrialElements = 4096;

// What a rank says of itself, "" for nothing to say; cut if it is longer.
struct Note {
  char text[256];
};

std::vector<std::string> notes_of_all(Communicator& host, const std::string& mine) {
  Note note{};
  std::memcpy(note.text, mine.data(), std::min(mine.size(), sizeof(note.text) - 1));
  std::vector<Note> all(static_cast<std::size_t>(host.ranks()));
  host.all_gather_columns(matrix(&note, DType::u8, 1, sizeof(Note)),
                          matrix(all.data(), DType::u8, 1, sizeof(Note) * host.ranks()));
  std::vector<std::string> texts;
  for (const Note& n : all) texts.emplace_back(n.text);
  return texts;
}

// Whether work() throws on no rank; else why.
bool all_succeed(Communicator& host, const std::function<void()>& work, std::string& why) {
  std::string problem;
  try {
    work();
  } catch (const Error& e) {
    problem = e.what();
    cudaGetLastError();  // this error does not stick
  }
  const std::vector<std::string> problems = notes_of_all(host, problem);
  for (std::size_t r = 0; r < problems.size() && why.empty(); ++r)
    if (!problems[r].empty()) why = text("rank ", r, " of the group: ", problems[r]);
  return why.empty();
}

bool on_one_host(Communicator& host, std::string& why) {
  const std::vector<std::string> hosts = notes_of_all(host, host_name());
  for (const std::string& name : hosts)
    if (name != hosts[0]) why = text("they are on ", hosts[0], " and ", name);
  return why.empty();
}

// As it is for NCCL, which takes any other value for on.
void require_allowed() {
  const char* const off = std::getenv("NCCL_P2P_DISABLE");
  OSTRO_SUPPORTED(!off || std::string(off) == "0", "NCCL_P2P_DISABLE is ", off);
}

}  // namespace

std::unique_ptr<PeerMemory> PeerMemory::open(Communicator& host, const cuda::Queue& queue,
                                             std::string& why) {
  why.clear();
  if (host.ranks() > cuda::kMostPeers) {
    why = text("they are ", host.ranks(), ", the most is ", cuda::kMostPeers);
    return nullptr;
  }
  if (!on_one_host(host, why) || !all_succeed(host, require_allowed, why)) return nullptr;

  std::unique_ptr<PeerMemory> memory(new PeerMemory(queue));
  std::vector<cudaIpcMemHandle_t> handles(static_cast<std::size_t>(host.ranks()));
  cudaIpcMemHandle_t mine{};
  const auto allocate = [&] {
    memory->allocate(host.rank(), host.ranks());
    OSTRO_CUDA(cudaIpcGetMemHandle(&mine, memory->peers_.memory[host.rank()]));
  };
  const auto share_handles = [&] {
    host.all_gather_columns(matrix(&mine, DType::u8, 1, sizeof(mine)),
                            matrix(handles.data(), DType::u8, 1, sizeof(mine) * handles.size()));
  };
  if (all_succeed(host, allocate, why)) {
    share_handles();
    if (all_succeed(
            host, [&] { memory->open_others(handles.data()); }, why) &&
        all_succeed(
            host, [&] { memory->try_a_sum(); }, why))
      return memory;
  }
  memory->close(host);
  return nullptr;
}

void PeerMemory::allocate(int rank, int ranks) {
  OSTRO_CUDA(cudaSetDevice(queue_.device));
  peers_.rank = rank;
  peers_.ranks = ranks;
  const auto zeros = [&](auto*& memory, std::size_t bytes) {
    void* data = nullptr;
    OSTRO_CUDA(cudaMalloc(&data, bytes));
    memory = static_cast<std::remove_reference_t<decltype(memory)>>(data);
    OSTRO_CUDA(cudaMemsetAsync(data, 0, bytes, queue_.stream));
  };
  zeros(peers_.memory[rank], cuda::peer_bytes(ranks));
  zeros(peers_.rounds, cuda::kPeerBlocks * sizeof(std::uint32_t));
  void* stopped = nullptr;
  OSTRO_CUDA(cudaHostAlloc(&stopped, sizeof(std::uint32_t), cudaHostAllocMapped));
  stopped_ = static_cast<std::uint32_t*>(stopped);
  *stopped_ = 0;
  void* mapped = nullptr;
  OSTRO_CUDA(cudaHostGetDevicePointer(&mapped, stopped_, 0));
  peers_.stopped = static_cast<const std::uint32_t*>(mapped);
  OSTRO_CUDA(cudaStreamSynchronize(queue_.stream));
}

void PeerMemory::open_others(const void* handles) {
  for (int q = 0; q < peers_.ranks; ++q) {
    if (q == peers_.rank) continue;
    void* mapped = nullptr;
    OSTRO_CUDA(cudaIpcOpenMemHandle(&mapped, static_cast<const cudaIpcMemHandle_t*>(handles)[q],
                                    cudaIpcMemLazyEnablePeerAccess));
    peers_.memory[q] = static_cast<std::byte*>(mapped);
  }
}

// Element i of rank r is i + r: that the GPUs open each other's memory does not say that what they
// write arrives.
void PeerMemory::try_a_sum() {
  std::vector<float> host(kTrialElements);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = float(i) + float(peers_.rank);
  const Buffer there = cuda::allocate_uninitialised(host.size() * sizeof(float));
  OSTRO_CUDA(cudaMemcpy(there.data(), host.data(), there.bytes(), cudaMemcpyHostToDevice));
  for (const bool two_rounds : {false, true})
    cuda::peer_sum(queue_.stream, peers_, there.view(DType::f32, 1, kTrialElements), two_rounds);
  const Stopwatch watch;
  while (cudaStreamQuery(queue_.stream) == cudaErrorNotReady) {
    if (watch.seconds() > kTrialSeconds) stop();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  OSTRO_CUDA(cudaStreamSynchronize(queue_.stream));
  OSTRO_SUPPORTED(*stopped_ == 0, "a sum in peer memory has not ended after ", kTrialSeconds, " s");
  OSTRO_CUDA(cudaMemcpy(host.data(), there.data(), there.bytes(), cudaMemcpyDeviceToHost));
  const float n = float(peers_.ranks);
  for (std::size_t i = 0; i < host.size(); ++i) {
    const float want = n * (n * float(i) + n * (n - 1) / 2);  // the second sum is of n equal ones
    OSTRO_SUPPORTED(host[i] == want, "a sum in peer memory gave ", host[i], ", not ", want);
  }
}

void PeerMemory::stop() noexcept {
  if (stopped_) *static_cast<volatile std::uint32_t*>(stopped_) = 1;
}

void PeerMemory::unmap() noexcept {
  for (int q = 0; q < peers_.ranks; ++q)
    if (q != peers_.rank && peers_.memory[q])
      cudaIpcCloseMemHandle(std::exchange(peers_.memory[q], nullptr));
}

void PeerMemory::close(Communicator& host) {
  cudaStreamSynchronize(queue_.stream);
  unmap();
  host.barrier();
  closed_ = true;
}

PeerMemory::~PeerMemory() {
  stop();
  if (!closed_) return;
  cudaSetDevice(queue_.device);
  cudaFree(peers_.memory[peers_.rank]);
  cudaFree(peers_.rounds);
  cudaFreeHost(stopped_);
}

}  // namespace ostro::comm::nccl
