// The values that a computing warpgroup of attention_wgmma.cuh multiplies its weights with, and the
// seldom needed products of another kind, of one warp.
//
// A weight of 0 does not keep NaN and infinity out of a sum. If a tile holds such values at a
// position that some row does not see, mma multiplies without them, wgmma with zeros, and the rows
// that do see them get their NaN afterwards.
#pragma once

#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/kernels/attention_wgmma_layout.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mma.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

template <class V, class L, int kHead>
struct PromptValues {
  int group;
  std::uint32_t shared;
  const unsigned char* data;    // at `shared`
  std::uint64_t chosen = 0;     // for wgmma: the tile, or zeros
  std::uint64_t next_rows = 0;  // from 16 positions to the next in it
  bool odd = false;             // the latter

  __device__ PromptValues(int group, std::uint32_t shared, const unsigned char* data)
      : group(group), shared(shared), data(data) {}

  // `hidden`: whether some row of the warpgroup does not see a position of the tile.
  __device__ void choose(std::uint32_t tile, bool hidden) {
    chosen = ptx::swizzled_transposed(tile, L::kBlockBytes);
    next_rows = 128;
    odd = false;
    if (!hidden) return;
    const int thread = int(threadIdx.x) % 128;
    const auto* const words = reinterpret_cast<const uint4*>(data + (tile - shared));
    std::uint32_t found = 0;
#pragma unroll 8
    for (int j = 0; j < L::kTileBytes / 16 / 128; ++j) {
      const uint4 w = words[thread + 128 * j];
      found |= Bits<V>::not_finite(w.x) | Bits<V>::not_finite(w.y) | Bits<V>::not_finite(w.z) |
               Bits<V>::not_finite(w.w);
    }
    odd = ptx::named_barrier_any(1 + group, 128, found != 0);
    if (!odd) return;
    chosen = ptx::swizzled_again(shared + L::kZeros);
    next_rows = 0;
  }

  // What wgmma would add, by mma, where NaN and infinity count as 0; between the step's halves the
  // sums times `keep`. Leaves zeros as weights.
  __device__ void add(std::uint32_t tile, std::uint32_t (&weights)[L::kStep / 16][4],
                      const float (&keep)[2], float (&sum)[kHead / 2]) const {
    const int lane = int(threadIdx.x) % 32;
    const std::uint32_t at = tile + L::at(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < L::kStep / 16; ++k) {
      if (k == kPositions / 16) {
#pragma unroll
        for (int n = 0; n < kHead / 2; ++n) sum[n] *= keep[n / 2 % 2];
      }
#pragma unroll
      for (int n = 0; n < kHead / 16; ++n) {
        std::uint32_t v[4];
        // 16 k positions and 2 n chunks further.
        ptx::load_matrices_transposed(
            v, (at ^ 2 * n % 8 << 4) + 2 * n / 8 * L::kBlockBytes + 16 * k * 128);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] &= ~Bits<V>::not_finite(v[j]);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          ptx::mma<V>(reinterpret_cast<float(&)[4]>(sum[8 * n + 4 * j]), weights[k], v[2 * j],
                      v[2 * j + 1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[k][i] = 0;
    }
  }

  // NaN for the rows that see such values of the tile, whose first position is p0.
  __device__ void add_odd(std::uint32_t tile, int p0, const AttentionRow (&rows)[2],
                          float (&sum)[kHead / 2]) const {
    const int lane = int(threadIdx.x) % 32;
    std::uint32_t columns[2] = {};  // of sum, a bit each
#pragma unroll 1
    for (int at = 0; at < L::kStep * kHead / 8; ++at) {
      const int p = at % L::kStep, n = at / L::kStep;
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
