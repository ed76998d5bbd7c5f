// The sum of an all-reduce of more than two ranks, in rank order (kernels/sum_ranks.h).
//
// Grid:     one thread for each element, at most kBlocks blocks of 256.
// Traffic:  reads ranks * 4 bytes and writes 4 an element.
// Bound by: launch latency for decode steps, memory for prompts; not measured.
#include "backends/cuda/kernels/sum_ranks.h"

#include <algorithm>

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/launch.h"
#include "base/math.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlocks = 1056;  // 8 for each multiprocessor of an H100

__global__ void sum_ranks_kernel(const float* parts, const float* own, int rank, int ranks,
                                 float* sum, std::int64_t n) {
  begin_kernel();
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    float total = rank == 0 ? own[i] : parts[i];
    for (int q = 1; q < ranks; ++q) total += q == rank ? own[i] : parts[q * n + i];
    sum[i] = total;
  }
}

}  // namespace

void sum_ranks(cudaStream_t stream, const float* parts, const float* own, int rank, int ranks,
               float* sum, std::int64_t n) {
  launch(stream,
         {.blocks = std::min(kBlocks, ceil_div(n, std::int64_t{kThreads})), .threads = kThreads},
         sum_ranks_kernel, parts, own, rank, ranks, sum, n);
}

}  // namespace ostro::cuda
