// Softmax and choice of ops::Route by one warp, for the kernels that have summed the logits.
#pragma once

#include "backends/cuda/kernels/element.cuh"
#include "ops/moe.h"

namespace ostro::cuda {

// A token's logits and what becomes of them, in shared memory.
template <int kMost>
struct RouteShared {
  float logits[kMost];
  float p[kMost];  // of choice j
  bool taken[kMost];

  __device__ void set(int expert, float logit) {
    logits[expert] = logit;
    taken[expert] = false;
  }
};

// The router and the outputs of ops::Route.
template <class T>
struct RouteArgs {
  const T* router;
  std::int64_t router_stride;
  std::int32_t* chosen;
  std::int64_t chosen_stride;
  float* weights;
  std::int64_t weights_stride;
  unsigned* counts;
  const std::int32_t* live;
  std::int64_t tokens;
  int experts, top_k;
  bool renormalize;
};

template <class T>
RouteArgs<T> route_args(const ops::Route& op) {
  return {.router = static_cast<const T*>(op.router.data.data),
          .router_stride = op.router.data.row_stride,
          .chosen = static_cast<std::int32_t*>(op.experts.data),
          .chosen_stride = op.experts.row_stride,
          .weights = static_cast<float*>(op.weights.data),
          .weights_stride = op.weights.row_stride,
          .counts = static_cast<unsigned*>(op.counts.data),
          .live = static_cast<const std::int32_t*>(op.live.data),
          .tokens = op.x.rows,
          .experts = int(op.router.n()),
          .top_k = int(op.experts.cols),
          .renormalize = op.renormalize};
}

// What a token's row of the outputs holds; null counts: nothing is counted.
struct RouteRow {
  std::int32_t* chosen;
  float* weights;
  unsigned* counts;
};

// sum + a . b, in their order: how the logits are summed, in packs from lane to lane.
template <class X, class R, int kCount>
__device__ inline float dot(const Pack<X, kCount>& a, const Pack<R, kCount>& b, float sum) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) sum = fmaf(widen(a.v[j]), widen(b.v[j]), sum);
  return sum;
}

// By all lanes of a warp; chosen(j, expert) is called by lane 0.
template <int kMost, class Chosen>
__device__ inline void choose_experts(RouteShared<kMost>& s, int experts, int top_k,
                                      bool renormalize, const RouteRow& to, Chosen&& chosen) {
  const int lane = int(threadIdx.x) % 32;
  float most = -INFINITY, all = 0;
#pragma unroll 1
  for (int e = lane; e < experts; e += 32) most = fmaxf(most, s.logits[e]);
  most = warp_max(most);
#pragma unroll 1
  for (int e = lane; e < experts; e += 32) all += expf(s.logits[e] - most);
  all = warp_sum(all);

  // NaN ranks last, so that every choice is a distinct expert whatever the logits.
  float sum = 0;
#pragma unroll 1
  for (int j = 0; j < top_k; ++j) {
    float best = -INFINITY;
    int expert = kMost;
#pragma unroll 1
    for (int e = lane; e < experts; e += 32) {
      const float z = s.logits[e];
      if (s.taken[e] || !(expert == kMost || z > best)) continue;
      best = isnan(z) ? -INFINITY : z;
      expert = e;
    }
    for (int d = 16; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, best, d);
      const int other_expert = __shfl_xor_sync(~0u, expert, d);
      const bool better = other_expert < kMost && (expert == kMost || other > best ||
                                                   (other == best && other_expert < expert));
      if (better) best = other, expert = other_expert;
    }
    const float p = expf(s.logits[expert] - most) / all;
    sum += p;
    if (lane == expert % 32) s.taken[expert] = true;  // the lane that reads it
    if (lane == 0) {
      s.p[j] = p;
      to.chosen[j] = expert;
      if (to.counts) atomicAdd(to.counts + expert, 1u);
      chosen(j, expert);
    }
  }
  __syncwarp();
#pragma unroll 1
  for (int j = lane; j < top_k; j += 32) to.weights[j] = renormalize ? s.p[j] / sum : s.p[j];
}

// Those of a token that is padding, by one thread of `threads`.
__device__ inline void choose_none(int top_k, const RouteRow& to, int thread, int threads) {
#pragma unroll 1
  for (int j = thread; j < top_k; j += threads) {
    to.chosen[j] = -1;
    to.weights[j] = 0;
  }
}

}  // namespace ostro::cuda
