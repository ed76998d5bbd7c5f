// ops::Route on CUDA for many tokens and few experts. The contract is in ops/moe.h.
//
// Grid:     one block of 8 warps for 16 tokens, two a warp, whose rows pass through registers once.
//           The router is in shared memory, where it comes before the predecessor has ended.
// Numbers:  bit by bit those of route.cu: a lane sums packs of eight columns, 256 apart, in rising
//           order, then the lanes.
// Traffic:  2 bytes an element of x; the router from shared memory for each two tokens.
// Bound by: latency of the loads of x, of which a warp has four under way.
// Floor on an H100 (3.15 TB/s): 2 * tokens * hidden / 3.15e12 s; 21 us at 8192 tokens of 4096.
// Measured (H100 80 GB HBM3, cuda_kernels_bench): 15 us at 2048 tokens, 47 us at 8192, where
//           route.cu takes 22 and 102. On an H200 15 us at 512 tokens, where that takes 9.
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/route.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"

namespace ostro::cuda {
namespace {

constexpr int kWarps = 8, kWarpTokens = 2, kBlockTokens = kWarps * kWarpTokens;
constexpr int kPack = 8, kStep = 32 * kPack;  // columns of a lane, of a warp
constexpr int kExperts = 8;
constexpr std::int64_t kMostShared = 100 << 10;  // of the router: two blocks a multiprocessor
constexpr std::int64_t kLeastTokens = 2048;      // fewer leave multiprocessors idle

// As choose_experts() of route.cuh, with a lane for each expert, which has its logit in `logit`.
// All lanes take part.
__device__ void choose(float logit, int experts, int top_k, bool renormalize, std::int32_t* chosen,
                       float* weights, unsigned* counts) {
  const int lane = int(threadIdx.x) % 32;
  const bool there = lane < experts;
  const float most = warp_max(there ? logit : -INFINITY);
  const float all = warp_sum(there ? expf(logit - most) : 0);
  // NaN ranks last, so that every choice is a distinct expert whatever the logits.
  float sum = 0, own = 0;
  bool left = there;
  for (int j = 0; j < top_k; ++j) {
    float best = left && !isnan(logit) ? logit : -INFINITY;
    int expert = left ? lane : 32;
    for (int d = 16; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, best, d);
      const int other_expert = __shfl_xor_sync(~0u, expert, d);
      const bool better = other_expert < 32 && (expert == 32 || other > best ||
                                                (other == best && other_expert < expert));
      if (better) best = other, expert = other_expert;
    }
    const float p = expf(__shfl_sync(~0u, logit, expert) - most) / all;
    sum += p;
    if (lane == j) own = p;
    if (lane == expert) left = false;
    if (lane == 0) {
      chosen[j] = expert;
      if (counts) atomicAdd(counts + expert, 1u);
    }
  }
  if (lane < top_k) weights[lane] = renormalize ? own / sum : own;
}

template <class T>
__global__ void __launch_bounds__(kWarps * 32)
    route_prompts_kernel(const T* x, std::int64_t x_stride, std::int64_t tokens, const T* router,
                         std::int64_t router_stride, std::int32_t* chosen,
                         std::int64_t chosen_stride, float* weights, std::int64_t weights_stride,
                         unsigned* counts, int hidden, int experts, int top_k, bool renormalize,
                         const std::int32_t* live) {
  extern __shared__ __align__(16) unsigned char shared_raw[];
  T* const rows = reinterpret_cast<T*>(shared_raw);
  for (int e = 0; e < experts; ++e)
    for (int i = int(threadIdx.x) * kPack; i < hidden; i += kWarps * 32 * kPack)
      ptx::copy16(ptx::shared_address(rows + e * hidden + i), router + e * router_stride + i);
  ptx::copy_commit();
  begin_kernel();
  ptx::copy_wait<0>();
  __syncthreads();

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const std::int64_t first = std::int64_t(blockIdx.x) * kBlockTokens + warp * kWarpTokens;
  const std::int64_t last = live ? min(std::int64_t(*live), tokens) : tokens;
  const T* row[kWarpTokens];
#pragma unroll
  for (int t = 0; t < kWarpTokens; ++t) row[t] = x + min(first + t, tokens - 1) * x_stride;
  float sum[kWarpTokens][kExperts] = {};
#pragma unroll 2
  for (int i = lane * kPack; i < hidden; i += kStep) {
    Pack<T, kPack> a[kWarpTokens];
#pragma unroll
    for (int t = 0; t < kWarpTokens; ++t) a[t] = load_pack<kPack>(row[t] + i);
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      if (e >= experts) break;
      const auto b = load_pack<kPack>(rows + e * hidden + i);
#pragma unroll
      for (int t = 0; t < kWarpTokens; ++t)
#pragma unroll
        for (int j = 0; j < kPack; ++j)
          sum[t][e] = fmaf(widen(a[t].v[j]), widen(b.v[j]), sum[t][e]);
    }
  }
#pragma unroll
  for (int t = 0; t < kWarpTokens; ++t) {
    float logit = -INFINITY;
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float all = warp_sum(sum[t][e]);
      if (lane == e) logit = all;
    }
    const std::int64_t token = first + t;
    if (token >= tokens) return;
    std::int32_t* const to = chosen + token * chosen_stride;
    float* const weight = weights + token * weights_stride;
    if (token < last) {
      choose(logit, experts, top_k, renormalize, to, weight, counts);
    } else if (lane < top_k) {
      to[lane] = -1;
      weight[lane] = 0;
    }
  }
}

}  // namespace

bool route_prompts_takes(const ops::Route& op) {
  const View& router = op.router.data;
  return op.x.rows >= kLeastTokens && router.rows <= kExperts && router.dtype == op.x.dtype &&
         op.x.dtype != DType::f32 && op.x.cols % kPack == 0 && rows_aligned(op.x, 16) &&
         rows_aligned(router, 16) &&
         std::int64_t(size_of(op.x.dtype)) * op.x.cols * router.rows <= kMostShared;
}

void route_prompts(cudaStream_t stream, const ops::Route& op) {
  const View& router = op.router.data;
  visit_dtype<f16, bf16>(op.x.dtype, "Route of prompts on CUDA", [&]<class X>() {
    using T = device_t<X>;
    launch(stream,
           {.blocks = (op.x.rows + kBlockTokens - 1) / kBlockTokens,
            .threads = kWarps * 32,
            .shared_bytes = router.rows * op.x.cols * std::int64_t(sizeof(T))},
           route_prompts_kernel<T>, static_cast<const T*>(op.x.data), op.x.row_stride, op.x.rows,
           static_cast<const T*>(router.data), router.row_stride,
           static_cast<std::int32_t*>(op.experts.data), op.experts.row_stride,
           static_cast<float*>(op.weights.data), op.weights.row_stride,
           static_cast<unsigned*>(op.counts.data), int(op.x.cols), int(router.rows),
           int(op.experts.cols), op.renormalize, static_cast<const std::int32_t*>(op.live.data));
  });
}

}  // namespace ostro::cuda
