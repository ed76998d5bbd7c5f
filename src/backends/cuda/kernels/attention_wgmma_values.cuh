// What a computing warpgroup of attention_wgmma.cuh multiplies its weights with.
//
// A weight of 0 does not keep NaN and infinity out of a sum. If a tile holds such values at a
// position that some row does not see, a copy of it with zeros instead is multiplied, and the rows
// that do see them get their NaN afterwards.
#pragma once

#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/kernels/attention_wgmma_layout.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

template <class V, int kHead>
struct FiniteValues {
  using L = PromptLayout<kHead>;
  int group;
  std::uint32_t shared;
  const unsigned char* data;  // at `shared`
  std::uint64_t chosen = 0;   // of the tile or of its copy, for wgmma
  bool odd = false;           // the latter

  __device__ FiniteValues(int group, std::uint32_t shared, const unsigned char* data)
      : group(group), shared(shared), data(data) {}

  // `hidden`: whether some row does not see a position of the tile.
  __device__ void choose(std::uint32_t tile, bool hidden) {
    chosen = ptx::swizzled_transposed(tile, L::kBlockBytes);
    odd = false;
    if (!hidden) return;
    const int thread = int(threadIdx.x) % 128, barrier = 1 + group;
    const auto* const words = reinterpret_cast<const uint4*>(data + (tile - shared));
    constexpr int kEach = L::kTileBytes / 16 / 128;
    std::uint32_t found = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const uint4 w = words[thread + 128 * j];
      found |= Bits<V>::not_finite(w.x) | Bits<V>::not_finite(w.y) | Bits<V>::not_finite(w.z) |
               Bits<V>::not_finite(w.w);
    }
    odd = ptx::named_barrier_any(barrier, 128, found != 0);
    if (!odd) return;
    const std::uint32_t copy = shared + L::kCopies + group * L::kTileBytes;
#pragma unroll 1
    for (int j = 0; j < kEach; ++j) {
      const uint4 w = words[thread + 128 * j];
      const auto finite = [](std::uint32_t x) { return x & ~Bits<V>::not_finite(x); };
      ptx::store16(copy + (thread + 128 * j) * 16,
                   make_uint4(finite(w.x), finite(w.y), finite(w.z), finite(w.w)));
    }
    ptx::fence_async_proxy();
    ptx::named_barrier_sync(barrier, 128);
    chosen = ptx::swizzled_transposed(copy, L::kBlockBytes);
  }

  // NaN for the rows that see such values of the tile, whose first position is p0.
  __device__ void add_odd(std::uint32_t tile, int p0, const AttentionRow (&rows)[2],
                          float (&sum)[kHead / 2]) const {
    const int lane = int(threadIdx.x) % 32;
    std::uint32_t columns[2] = {};  // of sum, a bit each
#pragma unroll 1
    for (int at = 0; at < kPositions * kHead / 8; ++at) {
      const int p = at % kPositions, n = at / kPositions;
      const std::uint32_t bad = Bits<V>::not_finite(*reinterpret_cast<const std::uint32_t*>(
          data + (tile - shared) + L::at(p, n) + 4 * (lane % 4)));
      const std::uint32_t two = (bad & 1) | (bad >> 16 & 1) << 1;
      const std::uint32_t four =
          (rows[0].sees(p0 + p) ? two : 0) | (rows[1].sees(p0 + p) ? two << 2 : 0);
      columns[0] |= n < 8 ? four << 4 * n : 0;
      columns[1] |= n < 8 ? 0 : four << 4 * (n - 8);
    }
#pragma unroll
    for (int n = 0; n < kHead / 2; ++n)
      if (columns[n / 32] >> n % 32 & 1) sum[n] = NAN;
  }
};

}  // namespace ostro::cuda
