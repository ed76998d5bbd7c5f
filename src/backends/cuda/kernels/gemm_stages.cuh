// What the GEMMs share whose weights come by the copy engine: those of experts as launch
// parameters, the stages in shared memory, and their ring.
#pragma once

#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"

namespace ostro::cuda {

// The weights of up to so many experts, as launch parameters.
struct TmaWeights {
  struct Matrix {
    CUtensorMap rows;
    const float* scale;
  };
  Matrix weight[kMostTmaExperts], up[kMostTmaExperts];
};
static_assert(sizeof(TmaWeights) < 16000);

// Those of a product, `rows(weight)` being the description of a matrix. Throws InternalError beyond
// kMostTmaExperts.
template <class Rows>
TmaWeights tma_weights(const HostWeights& host, bool swiglu, Rows&& rows) {
  OSTRO_CHECK(host.weight.size() <= kMostTmaExperts, host.weight.size(), " experts");
  TmaWeights weights{};
  for (std::size_t e = 0; e < host.weight.size(); ++e) {
    weights.weight[e] = {rows(host.weight[e]), host.weight[e].scale};
    if (swiglu) weights.up[e] = {rows(host.up[e]), host.up[e].scale};
  }
  return weights;
}

// The same in swizzled boxes of Tile::kHalfRows rows.
template <class Tile>
TmaWeights tma_weights(const GemmArgs& a, const HostWeights& host) {
  const std::int64_t row_bytes = std::int64_t(a.k) * Tile::kRowBytes / Tile::kK;
  constexpr std::int64_t kSize = sizeof(typename Tile::Element);
  return tma_weights(host, Tile::kSwiglu, [&](const WeightRef& w) {
    return swizzled_map(w.data, a.n, row_bytes, w.stride * kSize, Tile::kHalfRows);
  });
}

// The stages in shared memory, each of weights and, in rows of 128 bytes, tokens; their barriers.
template <class Tile>
struct Stages {
  std::uint32_t shared;  // of the first; a multiple of 1024

  __device__ std::uint32_t weights(int stage) const { return shared + stage * Tile::kStageBytes; }
  __device__ std::uint32_t tokens(int stage, int first = 0) const {  // from the first-th on
    return weights(stage) + Tile::kWeightBytes + first * 128;
  }
  __device__ std::uint32_t full(int stage) const { return shared + Tile::kBarriers + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }

  // By one thread: how many arrive when a stage is full, and when it is empty again.
  __device__ void init_barriers(int writers, int readers) const {
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::barrier_init(full(s), writers);
      ptx::barrier_init(empty(s), readers);
    }
    ptx::barrier_init_fence();
  }
};

// The stage that comes next, and the parity of its barriers' phase.
template <int kStages>
struct StageRing {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace ostro::cuda
