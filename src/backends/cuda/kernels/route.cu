// ops::Route on CUDA. The contract is in ops/moe.h.
//
// Grid:     one block of 8 warps for each token: warp w sums the logits of experts w, w + 8, ...;
//           warp 0 then chooses.
// Traffic:  reads the token (from L1 after the first expert) and the router, which stays in L2.
// Bound by: latency: a warp reads hidden * 2 bytes in steps of 512. From about 1000 tokens by L2:
//           tokens * experts * hidden * 2 bytes, 134 MB at 2048 tokens of 4096 and 8 experts.
// Floor on an H100 (3.15 TB/s): 2 * tokens * hidden / 3.15e12 s; 5 us at 2048 tokens.
// Measured (H100 80 GB HBM3, cuda_kernels_bench): 5.8 us at 1 to 64 tokens, 22 us at 2048.
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/route.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kPack = 8;
constexpr int kMaxExperts = 1024;  // the contract's limit

template <class X, class R, int kCount>
__global__ void __launch_bounds__(kWarps * 32)
    route_kernel(const X* x, std::int64_t x_stride, const R* router, std::int64_t router_stride,
                 std::int32_t* chosen, std::int64_t chosen_stride, float* weights,
                 std::int64_t weights_stride, unsigned* counts, int hidden, int experts, int top_k,
                 bool renormalize, const std::int32_t* live) {
  __shared__ float logits[kMaxExperts];
  __shared__ bool taken[kMaxExperts];
  begin_kernel();
  const std::int64_t t = blockIdx.x;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  if (live && t >= *live) {
    for (int j = int(threadIdx.x); j < top_k; j += kWarps * 32) {
      chosen[t * chosen_stride + j] = -1;
      weights[t * weights_stride + j] = 0;
    }
    return;
  }
  x += t * x_stride;
  for (int e = warp; e < experts; e += kWarps) {
    const R* row = router + e * router_stride;
    float sum = 0;
#pragma unroll 4
    for (int i = lane * kCount; i < hidden; i += 32 * kCount) {
      const auto a = load_pack<kCount>(x + i);
      const auto b = load_pack<kCount>(row + i);
#pragma unroll
      for (int j = 0; j < kCount; ++j) sum = fmaf(widen(a.v[j]), widen(b.v[j]), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      logits[e] = sum;
      taken[e] = false;
    }
  }
  __syncthreads();
  if (warp > 0) return;

  float most = -INFINITY, all = 0;
  for (int e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
  most = warp_max(most);
  for (int e = lane; e < experts; e += 32) all += expf(logits[e] - most);
  all = warp_sum(all);

  // NaN ranks last, so that every choice is a distinct expert whatever the logits.
  float sum = 0;
  for (int j = 0; j < top_k; ++j) {
    float best = -INFINITY;
    int expert = kMaxExperts;
    for (int e = lane; e < experts; e += 32) {
      const float z = logits[e];
      if (taken[e] || !(expert == kMaxExperts || z > best)) continue;
      best = isnan(z) ? -INFINITY : z;
      expert = e;
    }
    for (int d = 16; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, best, d);
      const int other_expert = __shfl_xor_sync(~0u, expert, d);
      const bool better = other_expert < kMaxExperts && (expert == kMaxExperts || other > best ||
                                                         (other == best && other_expert < expert));
      if (better) best = other, expert = other_expert;
    }
    const float p = expf(logits[expert] - most) / all;
    sum += p;
    if (lane == expert % 32) taken[expert] = true;  // the lane that reads it
    if (lane == 0) {
      chosen[t * chosen_stride + j] = expert;
      weights[t * weights_stride + j] = p;
      if (counts) atomicAdd(counts + expert, 1u);
    }
  }
  if (!renormalize) return;
  __syncwarp();
  for (int j = lane; j < top_k; j += 32) weights[t * weights_stride + j] /= sum;
}

}  // namespace

void route(cudaStream_t stream, const ops::Route& op) {
  const View& router = op.router.data;
  const bool packs = op.x.cols % kPack == 0 && rows_aligned(op.x, 16) && rows_aligned(router, 16);
  const auto start = [&]<class X, class R>() {
    launch(stream, {.blocks = op.x.rows, .threads = kWarps * 32},
           packs ? route_kernel<X, R, kPack> : route_kernel<X, R, 1>,
           static_cast<const X*>(op.x.data), op.x.row_stride, static_cast<const R*>(router.data),
           router.row_stride, static_cast<std::int32_t*>(op.experts.data), op.experts.row_stride,
           static_cast<float*>(op.weights.data), op.weights.row_stride,
           static_cast<unsigned*>(op.counts.data), int(op.x.cols), int(router.rows),
           int(op.experts.cols), op.renormalize, static_cast<const std::int32_t*>(op.live.data));
  };
  visit_dtype<float, f16, bf16>(op.x.dtype, "Route on CUDA", [&]<class X>() {
    if (router.dtype == op.x.dtype)
      start.template operator()<device_t<X>, device_t<X>>();
    else
      start.template operator()<device_t<X>, float>();
  });
}

}  // namespace ostro::cuda
