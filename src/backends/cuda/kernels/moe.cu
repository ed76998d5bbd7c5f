// Grouping by expert and the weighted sum of ops::ExpertMlp on CUDA. The contract is in ops/moe.h.
//
// Grouping: one block of 1024 threads; a warp for each expert walks the choices twice, counting and
//           then numbering its own by ballots: a counting sort without atomics, so the order of
//           slots is the same in every run. The host does not wait for it: the products launch the
//           most tiles that any routing can make.
//           Bound by latency: about 3 us up to some hundred tokens, 10 us at 8192 choices.
// Gather:   the rows of slots in their order, for the copy engine: one block of 256 threads each.
// Sum:      one block of 256 threads for each token; reads top_k rows of f32, writes one.
//           Floor on an H100 (3.15 TB/s): 4 (top_k + 1) * tokens * hidden / 3.15e12 s; 32 us at
//           2048 tokens of 4096. Measured with the products (gemm_tma.cuh).
#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kGroupThreads = 1024, kSumThreads = 256;

template <int kExperts, bool kScales>
__global__ void __launch_bounds__(kGroupThreads)
    group_by_expert_kernel(const __grid_constant__ WeightTable<kExperts, kScales> table,
                           const std::int32_t* chosen, std::int64_t stride, int choices, int top_k,
                           int first_expert, int experts, int tile, ExpertGroups out) {
  __shared__ std::int32_t start[kExperts + 1];
  begin_kernel();
  table.copy_to(out, experts, int(threadIdx.x), kGroupThreads);
  group_choices<kGroupThreads, 4>(choices, top_k, experts, tile, start, out, [&](int i) {
    return chosen[i / top_k * stride + i % top_k] - first_expert;
  });
}

template <int kPack>
__global__ void __launch_bounds__(kSumThreads)
    combine_experts_kernel(const std::int32_t* slot_of, const float* weights,
                           std::int64_t weights_stride, const float* out, float* y,
                           std::int64_t y_stride, int top_k, int hidden) {
  begin_kernel();
  const std::int64_t t = blockIdx.x;
  for (int i = int(threadIdx.x) * kPack; i < hidden; i += kSumThreads * kPack) {
    Pack<float, kPack> sum{};
    for (int j = 0; j < top_k; ++j) {
      const std::int64_t slot = slot_of[t * top_k + j];
      if (slot < 0) continue;
      const float weight = weights[t * weights_stride + j];
      const auto part = load_pack<kPack>(out + slot * hidden + i);
#pragma unroll
      for (int p = 0; p < kPack; ++p) sum.v[p] = fmaf(weight, part.v[p], sum.v[p]);
    }
    store_pack(y + t * y_stride + i, sum);
  }
}

__global__ void __launch_bounds__(kSumThreads)
    gather_slots_kernel(const char* x, std::int64_t x_row_bytes, const std::int32_t* token,
                        const std::int32_t* count, int bytes, char* y, std::int64_t y_row_bytes) {
  begin_kernel();
  const std::int64_t slot = blockIdx.x;
  if (slot >= *count) return;
  const char* const from = x + token[slot] * x_row_bytes;
  char* const to = y + slot * y_row_bytes;
  for (int i = int(threadIdx.x) * 16; i < bytes; i += kSumThreads * 16) {
    if (i + 16 <= bytes)
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
    else
      for (int j = i; j < bytes; ++j) to[j] = from[j];
  }
}

template <int kExperts, bool kScales>
void start_grouping(cudaStream_t stream, const ops::ExpertMlp& op, int token_tile,
                    const ExpertGroups& out) {
  const WeightTable<kExperts, kScales> table(op.local);
  launch(stream, {.blocks = 1, .threads = kGroupThreads}, group_by_expert_kernel<kExperts, kScales>,
         table, static_cast<const std::int32_t*>(op.experts.data), op.experts.row_stride,
         int(op.x.rows * op.experts.cols), int(op.experts.cols), int(op.first_expert),
         int(op.local.size()), token_tile, out);
}

}  // namespace

void group_by_expert(cudaStream_t stream, const ops::ExpertMlp& op, int token_tile,
                     const ExpertGroups& out) {
  const bool few = op.local.size() <= kFewExperts;
  if (op.local.front().gate.scale)
    few ? start_grouping<kFewExperts, true>(stream, op, token_tile, out)
        : start_grouping<kMostE4m3Experts, true>(stream, op, token_tile, out);
  else
    few ? start_grouping<kFewExperts, false>(stream, op, token_tile, out)
        : start_grouping<kMostExperts, false>(stream, op, token_tile, out);
}

void gather_slots(cudaStream_t stream, const View& x, const std::int32_t* token,
                  const std::int32_t* count, std::int64_t most, void* y, std::int64_t y_row_bytes) {
  const auto size = std::int64_t(size_of(x.dtype));
  launch(stream, {.blocks = most, .threads = kSumThreads}, gather_slots_kernel,
         static_cast<const char*>(x.data), x.row_stride * size, token, count, int(x.cols * size),
         static_cast<char*>(y), y_row_bytes);
}

void combine_experts(cudaStream_t stream, const ops::ExpertMlp& op, const std::int32_t* slot_of,
                     const float* out) {
  constexpr int kPack = 4;
  const bool packs = op.y.cols % kPack == 0 && rows_aligned(op.y, 16);
  launch(stream, {.blocks = op.y.rows, .threads = kSumThreads},
         packs ? combine_experts_kernel<kPack> : combine_experts_kernel<1>, slot_of,
         static_cast<const float*>(op.weights.data), op.weights.row_stride, out,
         static_cast<float*>(op.y.data), op.y.row_stride, int(op.experts.cols), int(op.y.cols));
}

}  // namespace ostro::cuda
