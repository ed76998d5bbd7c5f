// Grouping by expert and the weighted sum of ops::ExpertMlp on CUDA. The contract is in ops/moe.h.
//
// Grouping: one block of 1024 threads; each warp has a part of the choices, which it walks twice:
//           it counts those of each expert, and when the counts of all parts are known numbers
//           them, lanes that chose the same expert together. A counting sort whose order of slots
//           is the same in every run. The host does not wait for it: the products launch the most
//           tiles that any routing can make.
//           Bound by the instructions of one block. Measured (H200, alone): 6 us at 1024 choices,
//           26 us at 16384, when each was divided by top_k.
// Rows:     of x to the slots of their experts, for the copy engine: a block of 256 threads reads
//           4 KB of a token's row once, and writes them top_k times.
//           Floor on an H100 (3.15 TB/s): (1 + top_k) bytes * tokens * hidden / 3.15e12 s; 32 us
//           at 8192 tokens of 4096 in e4m3. Measured (H200, alone): 25 us.
// Sum:      one block of 256 threads for each token; reads top_k rows of f32, writes one.
//           Floor on an H100 (3.15 TB/s): 4 (top_k + 1) * tokens * hidden / 3.15e12 s; 32 us at
//           2048 tokens of 4096. Measured with the products (gemm_tma.cuh).
#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kGroupThreads = 1024, kSumThreads = 256;

// What the warps that walk the choices have of their parts: how many chose each expert, then how
// many of the parts before did. Of few experts a bank for each part.
template <int kExperts>
struct PartCounts {
  static constexpr int kParts = kExperts <= kFewExperts ? kGroupThreads / 32 : 8;
  std::int32_t of[kParts][kExperts + 1];
};

// The choices of all tokens: the local expert of choice i, -1 if it has none.
struct Choices {
  const std::int32_t* chosen;
  std::int64_t stride;
  int count, top_k, first_expert, experts;

  // One block does all this, so divisions would be most of its time.
  __device__ int token_of(int i) const { return top_k == 2 ? i / 2 : i / top_k; }
  __device__ int expert_at(int i) const {
    const std::int64_t at = stride == top_k ? i : token_of(i) * stride + i % top_k;
    const int e = chosen[at] - first_expert;
    return 0 <= e && e < experts ? e : -1;
  }
};

// By a warp: f(choice, its expert or -1, lanes of the same) for each choice from `first` up to
// `last`, all lanes together.
template <class F>
__device__ void walk(const Choices& choices, int first, int last, F&& f) {
  constexpr int kAhead = 4;
  const int lane = int(threadIdx.x) % 32;
#pragma unroll 1
  for (int base = first; base < last; base += 32 * kAhead) {
    int expert[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = base + k * 32 + lane;
      expert[k] = i < last ? choices.expert_at(i) : -1;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      f(base + k * 32 + lane, expert[k], __match_any_sync(~0u, expert[k]));
      __syncwarp();
    }
  }
}

// Of `alike` lanes the last counts for all.
__device__ bool is_last(unsigned alike) { return alike >> (threadIdx.x % 32) == 1; }

// From the counts of each part to those of the parts before it; start[e + 1]: all of expert e.
template <int kExperts>
__device__ void add_up(PartCounts<kExperts>& counts, int experts, std::int32_t* start) {
  constexpr int kParts = PartCounts<kExperts>::kParts;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll 1
  for (int e = warp; e < experts; e += kGroupThreads / 32) {
    const int own = lane < kParts ? counts.of[lane % kParts][e] : 0, before = sum_before(own);
    if (lane < kParts) counts.of[lane][e] = before;
    if (lane == 31) start[e + 1] = before + own;
  }
}

template <int kExperts, bool kScales>
__global__ void __launch_bounds__(kGroupThreads)
    group_by_expert_kernel(const __grid_constant__ WeightTable<kExperts, kScales> table,
                           const Choices choices, int tile, ExpertGroups out) {
  constexpr int kParts = PartCounts<kExperts>::kParts;
  __shared__ PartCounts<kExperts> counts;
  __shared__ std::int32_t start[kExperts + 1];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, experts = choices.experts;
  const int length = (choices.count + 32 * kParts - 1) / (32 * kParts) * 32;
  const int first = warp * length;
  const int last = warp < kParts ? min(choices.count, first + length) : 0;
  std::int32_t* const count = counts.of[warp % kParts];
  if (warp < kParts)
    for (int e = lane; e < experts; e += 32) count[e] = 0;
  __syncwarp();
  begin_kernel();
  table.copy_to(out, experts, int(threadIdx.x), kGroupThreads);
  walk(choices, first, last, [&](int i, int e, unsigned alike) {
    if (e >= 0 && is_last(alike)) count[e] += __popc(alike);
    if (e < 0 && i < last) out.slot_of[i] = -1;
  });
  __syncthreads();
  add_up(counts, experts, start);
  __syncthreads();
  if (warp == 0) place_tiles(experts, tile, start, out);
  __syncthreads();
  for (int e = int(threadIdx.x); e <= experts; e += kGroupThreads) out.start[e] = start[e];
  walk(choices, first, last, [&](int i, int e, unsigned alike) {
    const int next = e < 0 ? 0 : start[e] + count[e];
    __syncwarp();
    if (e < 0) return;
    const int slot = next + __popc(alike & ((1u << lane) - 1));
    out.token[slot] = choices.token_of(i);
    out.slot_of[i] = slot;
    if (is_last(alike)) count[e] += __popc(alike);
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

constexpr int kSpreadBytes = kSumThreads * 16;  // of a row, by one block

__global__ void __launch_bounds__(kSumThreads)
    spread_rows_kernel(const SpreadRows a, const std::int32_t* slot_of, int top_k, int parts) {
  begin_kernel();
  const std::int64_t t = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  const int i = part * kSpreadBytes + int(threadIdx.x) * 16;
  const char* const from = a.x + t * a.x_row_bytes + i;
  const bool whole = i + 16 <= a.bytes;
  const uint4 pack = whole ? *reinterpret_cast<const uint4*>(from) : uint4{};
  const bool has_scale = a.x_scale && part == 0 && threadIdx.x == 0;
  const float scale = has_scale ? a.x_scale[t] : 0;
#pragma unroll 1
  for (int j = 0; j < top_k; ++j) {
    const std::int64_t slot = slot_of[t * top_k + j];
    if (slot < 0) continue;
    char* const to = a.y + slot * a.y_row_bytes + i;
    if (whole)
      *reinterpret_cast<uint4*>(to) = pack;
    else
      for (int b = 0; i + b < a.bytes; ++b) to[b] = from[b];
    if (has_scale) a.y_scale[slot] = scale;
  }
}

template <int kExperts, bool kScales>
void start_grouping(cudaStream_t stream, const ops::ExpertMlp& op, int token_tile,
                    const ExpertGroups& out) {
  const WeightTable<kExperts, kScales> table(op.local);
  launch(stream, {.blocks = 1, .threads = kGroupThreads}, group_by_expert_kernel<kExperts, kScales>,
         table,
         Choices{.chosen = static_cast<const std::int32_t*>(op.experts.data),
                 .stride = op.experts.row_stride,
                 .count = int(op.x.rows * op.experts.cols),
                 .top_k = int(op.experts.cols),
                 .first_expert = int(op.first_expert),
                 .experts = int(op.local.size())},
         token_tile, out);
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

void spread_rows(cudaStream_t stream, const SpreadRows& rows, const std::int32_t* slot_of,
                 std::int64_t tokens, std::int64_t top_k) {
  const int parts = (rows.bytes + kSpreadBytes - 1) / kSpreadBytes;
  launch(stream, {.blocks = tokens * parts, .threads = kSumThreads}, spread_rows_kernel, rows,
         slot_of, int(top_k), parts);
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
