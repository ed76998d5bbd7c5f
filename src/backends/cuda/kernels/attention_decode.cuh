// ops::PagedAttention of single tokens on CUDA, head_dim 64 or 128. The contract is in
// ops/attention.h, the order of the sums in attention_rows.cuh.
//
// Items:    a token, a key head, and a part of the positions if they are split: the query heads of
//           one key head, at most eight, see the same positions.
// Grid:     blocks take items in turns: one a multiprocessor, of an e4m3 cache two.
// Roles:    one warp loads: the bulk copy engine brings boxes of 16 positions of a page, of the
//           next items too, as far ahead as there is room. Four warps compute.
// Pipeline: rounds of 256 positions. Each warp has the scores of one tile of 64 positions, keys
//           times queries; then the warps tell each other the largest; then each has the weights of
//           its tile, and they exchange those; then each has a quarter of the columns of the sums
//           over all four tiles. So a product has as many rows as are used, and a warp waits for
//           two barriers a round.
// Traffic:  4 * head_dim bytes a position and key head, of an e4m3 cache half of that.
// Bound by: memory.
// Floor on an H100: 4 * kv_heads * head_dim * positions / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): 1 request of 192
//           positions 6.6 us, of 1024 10.6, of 8192 15.4; 64 requests 20.4, 92.9, 722 us; 128
//           requests 37.8, 184, 1420 us (96 % of 3.15 TB/s). On an e4m3 cache of 192 and 8192
//           positions: 5.1 and 14.1; 8.6 and 366; 21.8 and 722 us.
#pragma once

#include <numeric>

#include "backends/cuda/kernels/attention_boxes.cuh"
#include "backends/cuda/kernels/attention_decode_load.cuh"
#include "backends/cuda/kernels/attention_join.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/mma.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/tma.cuh"

namespace ostro::cuda {

// Scores of a tile for two rows of a thread, 2 (lane % 4) and + 1: s[m][2 h + e] is of position
// 16 m + 8 h + lane / 4 and row e.
using DecodeScores = float[kPositions / 16][4];

template <class C, class V, int kHead>
__device__ inline void decode_scores(std::uint32_t keys, const std::uint32_t (&q)[kHead / 16][4],
                                     DecodeScores& s) {
  using L = DecodeLayout<C, kHead>;
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < kPositions / 16; ++m)
#pragma unroll
    for (int j = 0; j < 4; ++j) s[m][j] = 0;
  // An address whose chunk is a multiple of 2, or of 8 in another block of columns, further on.
  const auto further = [&](std::uint32_t address, int positions, int chunks) {
    return (address ^ chunks % 8 << 4) + chunks / 8 * L::kBlockBytes + positions * 128;
  };
  if constexpr (sizeof(C) == 1) {
    // Matrices: four times 8 positions of the 16 bytes of 16 columns.
    const std::uint32_t at = keys + L::at(lane, 0);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
      for (int n = 0; n < kPositions / 32; ++n) {
        std::uint32_t four[4];
        ptx::load_matrices(four, further(at, 32 * n, k));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::uint32_t x = four[2 * j], y = four[2 * j + 1];
          const std::uint32_t a[4] = {widen_e4m3(x & 0xffff), widen_e4m3(y & 0xffff),
                                      widen_e4m3(x >> 16), widen_e4m3(y >> 16)};
          ptx::mma<V>(s[2 * n + j], a, q[k][0], q[k][2]);
        }
      }
  } else {
    // Matrices: positions 0-7 and 8-15 of 16, each of 8 columns and then of the next 8.
    const std::uint32_t at = keys + L::at(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
      for (int m = 0; m < kPositions / 16; ++m) {
        std::uint32_t a[4];
        ptx::load_matrices(a, further(at, 16 * m, 2 * k));
        ptx::mma<V>(s[m], a, q[k][0], q[k][2]);
      }
  }
}

// sum += values * weights, for 16 kCount columns of a warp and the thread's two rows: sum[n][2 h +
// e] is of column 16 n + 8 h + lane / 4 of the warp's, of e4m3 16 n + 2 (lane / 4) + h.
template <class C, class V, int kHead, int kCount>
__device__ inline void decode_sums(std::uint32_t values, int warp,
                                   const std::uint32_t (&weights)[kPositions / 16][2],
                                   float (&sum)[kCount][4]) {
  using L = DecodeLayout<C, kHead>;
  const int lane = int(threadIdx.x) % 32;
  if constexpr (sizeof(C) == 1) {
    // Matrices: four times 8 positions of 8 pairs of columns. A word has two columns of one
    // position and then of the next.
#pragma unroll
    for (int half = 0; half < kPositions / 32; ++half)
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        std::uint32_t words[4];
        ptx::load_matrices_transposed(words, values + L::at(lane + 32 * half, kCount * warp + n));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::uint32_t x = words[2 * j], y = words[2 * j + 1];
          const auto even = [](std::uint32_t w) {
            return widen_e4m3(__byte_perm(w, 0, 0x4420) & 0xffff);
          };
          const auto odd = [](std::uint32_t w) {
            return widen_e4m3(__byte_perm(w, 0, 0x4431) & 0xffff);
          };
          const std::uint32_t a[4] = {even(x), odd(x), even(y), odd(y)};
          const auto& w = weights[2 * half + j];
          ptx::mma<V>(sum[n], a, w[0], w[1]);
        }
      }
  } else {
    // Matrices: positions 0-7 of 8 columns and then of the next 8, then positions 8-15.
    const int position = lane % 8 + 8 * (lane / 16), chunk = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        std::uint32_t a[4];
        ptx::load_matrices_transposed(
            a, values + L::at(position + 16 * k, 2 * (kCount * warp + n) + chunk));
        ptx::mma<V>(sum[n], a, weights[k][0], weights[k][1]);
      }
  }
}

// One of the four warps that compute.
template <class T, class C, int kHead>
__device__ inline void compute_decode(const AttentionArgs& a, std::uint32_t shared,
                                      unsigned char* shared_data) {
  using L = DecodeLayout<C, kHead>;
  using V = factor_t<T, C>;
  constexpr bool kWiden = !std::is_same_v<T, C>;
  constexpr int kCount = kHead / 16 / kRoundTiles;  // of 16 columns of the sums
  constexpr int kBarrier = 1, kThreads = 32 * kRoundTiles;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int two = 2 * (lane % 4);  // the thread's first row
  auto* const all_most = reinterpret_cast<float*>(shared_data + L::kMost);
  auto* const all_totals = reinterpret_cast<float*>(shared_data + L::kTotals);
  auto* const all_weights = reinterpret_cast<uint4*>(shared_data + L::kWeights) + lane;

  int tile = 0;  // before this round
  for (int i = 0;; ++i) {
    ptx::barrier_wait(L::Items::full(shared, i), L::Items::parity(i));
    const DecodeItem item = *reinterpret_cast<const DecodeItem*>(shared_data + L::kItem +
                                                                 i % L::kItems * L::kItemBytes);
    if (item.token < 0) return;
    // Of row lane / 4, as the B operand of products; to_half takes it for two rows.
    std::uint32_t q[kHead / 16][4];
    const auto* const queries = reinterpret_cast<const std::uint32_t*>(
        shared_data + L::kQueries + i % L::kItems * L::kQueryBytes);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column =
            kWiden ? 16 * k + 4 * (lane % 4) + 2 * j : 16 * k + 8 * j + 2 * (lane % 4);
        q[k][2 * j] = lane / 4 < a.group ? queries[(lane / 4 * kHead + column) / 2] : 0;
        q[k][2 * j + 1] = 0;
      }
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(L::Items::empty(shared, i));
    float scale_log2[2] = {a.scale_log2, a.scale_log2};
    if constexpr (kWiden && !std::is_same_v<T, __half>) {
      to_half(q, scale_log2);
      const float own = scale_log2[0];
#pragma unroll
      for (int e = 0; e < 2; ++e) scale_log2[e] = __shfl_sync(~0u, own, 4 * (two + e));
    }

    // Of a part, and of the parts before. Totals are of the positions 2 j and 2 j + 1 of each 8.
    float sum[kCount][4], joined[kCount][4], most[2], total[2][4];
    float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};
    const auto start_part = [&] {
#pragma unroll
      for (int n = 0; n < kCount; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[n][j] = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        most[e] = -INFINITY;
#pragma unroll
        for (int j = 0; j < 4; ++j) total[e][j] = 0;
      }
    };
    start_part();
#pragma unroll
    for (int n = 0; n < kCount; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j) joined[n][j] = 0;

    const int first = item.begin / kPositions, last = (item.end - 1) / kPositions;
    const int last_round = last / kRoundTiles;
    for (int round = first / kRoundTiles; round <= last_round; ++round) {
      const int t0 = max(first, round * kRoundTiles);
      const int count = min(last, round * kRoundTiles + kRoundTiles - 1) - t0 + 1;
      const auto partly_seen = [&](int t) {
        const int p0 = (t0 + t) * kPositions;
        return p0 < item.begin || p0 + kPositions > item.end;
      };
      DecodeScores s;
      if (warp < count) {
        ptx::barrier_wait(L::Tiles::full(shared, tile + warp), L::Tiles::parity(tile + warp));
        decode_scores<C, V, kHead>(L::Tiles::at(shared, tile + warp), q, s);
        __syncwarp();
        if (lane < kRoundTiles) ptx::barrier_arrive(L::Tiles::empty(shared, tile + warp));
        if (partly_seen(warp)) {
#pragma unroll
          for (int m = 0; m < kPositions / 16; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int p = (t0 + warp) * kPositions + 16 * m + 8 * h + lane / 4;
              if (p < item.begin || p >= item.end) s[m][2 * h] = s[m][2 * h + 1] = -INFINITY;
            }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float tile_most = -INFINITY;
#pragma unroll
          for (int m = 0; m < kPositions / 16; ++m)
            tile_most = fmaxf(tile_most, fmaxf(s[m][e], s[m][2 + e]));
          for (int d = 4; d < 32; d *= 2)
            tile_most = fmaxf(tile_most, __shfl_xor_sync(~0u, tile_most, d));
          if (lane < 4)
            all_most[warp * kMostDecodeGroup + two + e] = __fmul_rn(tile_most, scale_log2[e]);
        }
      }
      ptx::named_barrier_sync(kBarrier, kThreads);

      float keep[kRoundTiles][2], reference[2] = {0, 0};  // of this warp's tile
#pragma unroll
      for (int t = 0; t < kRoundTiles; ++t) {
        if (t >= count) break;
        const float2 tile_most =
            *reinterpret_cast<const float2*>(all_most + t * kMostDecodeGroup + two);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float new_most = later_most(most[e], e ? tile_most.y : tile_most.x);
          const float relative_to = new_most == -INFINITY ? 0 : new_most;
          keep[t][e] = ptx::exp2(most[e] - relative_to);
          most[e] = new_most;
          if (t == warp) reference[e] = relative_to;
        }
      }
      if (warp < count) {
        float tile_total[2];
#pragma unroll
        for (int m = 0; m < kPositions / 16; ++m)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& of = tile_total[j % 2];
            s[m][j] = ptx::exp2(__fmaf_rn(s[m][j], scale_log2[j % 2], -reference[j % 2]));
            of = m == 0 && j < 2 ? s[m][j] : __fadd_rn(of, s[m][j]);
          }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          tile_total[e] = __fadd_rn(tile_total[e], __shfl_xor_sync(~0u, tile_total[e], 4));
          if (lane / 4 % 2 == 0)
            all_totals[(warp * kMostDecodeGroup + two + e) * 4 + lane / 8] = tile_total[e];
        }
        std::uint32_t pairs[kPositions / 8];
#pragma unroll
        for (int m = 0; m < kPositions / 16; ++m)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            pairs[2 * m + h] = ptx::transposed(rounded_pair<V>(s[m][2 * h], s[m][2 * h + 1]));
#pragma unroll
        for (int m = 0; m < 2; ++m)
          all_weights[(2 * warp + m) * 32] =
              make_uint4(pairs[4 * m], pairs[4 * m + 1], pairs[4 * m + 2], pairs[4 * m + 3]);
      }
      ptx::named_barrier_sync(kBarrier, kThreads);

#pragma unroll
      for (int t = 0; t < kRoundTiles; ++t) {
        if (t >= count) break;
        const int of = tile + count + t;
        const uint4 low = all_weights[2 * t * 32], high = all_weights[(2 * t + 1) * 32];
        const std::uint32_t weights[kPositions / 16][2] = {
            {low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 add =
              *reinterpret_cast<const float4*>(all_totals + (t * kMostDecodeGroup + two + e) * 4);
          total[e][0] = __fmaf_rn(total[e][0], keep[t][e], add.x);
          total[e][1] = __fmaf_rn(total[e][1], keep[t][e], add.y);
          total[e][2] = __fmaf_rn(total[e][2], keep[t][e], add.z);
          total[e][3] = __fmaf_rn(total[e][3], keep[t][e], add.w);
        }
#pragma unroll
        for (int n = 0; n < kCount; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[n][j] *= keep[t][j % 2];
        ptx::barrier_wait(L::Tiles::full(shared, of), L::Tiles::parity(of));
        if (partly_seen(t)) {
          // Values that nobody sees came along; a weight of 0 would not keep a NaN out.
          constexpr int kChunks = kHead * int(sizeof(C)) / 16 / kRoundTiles;
          for (int p = lane; p < kPositions; p += 32) {
            const int position = (t0 + t) * kPositions + p;
            if (position >= item.begin && position < item.end) continue;
#pragma unroll
            for (int c = 0; c < kChunks; ++c)
              ptx::store16(L::Tiles::at(shared, of) + L::at(p, warp * kChunks + c),
                           make_uint4(0, 0, 0, 0));
          }
          ptx::fence_async_proxy();  // the bulk copy engine writes there next
          __syncwarp();
        }
        decode_sums<C, V, kHead>(L::Tiles::at(shared, of), warp, weights, sum);
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(L::Tiles::empty(shared, of));
      }
      tile += 2 * count;

      if (a.splits > 1 || (round < last_round && (round + 1) * kRoundTiles % kPartTiles != 0))
        continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Join join(joined_most[e], most[e]);
#pragma unroll
        for (int n = 0; n < kCount; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            joined[n][2 * h + e] = join(joined[n][2 * h + e], sum[n][2 * h + e]);
        joined_total[e] =
            join(joined_total[e], (total[e][0] + total[e][1]) + (total[e][2] + total[e][3]));
        joined_most[e] = join.most;
      }
      start_part();
    }

#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (two + e >= a.group) continue;
      const int head = item.kv_head * a.group + two + e;
      const auto column = [&](int n, int h) {
        return 16 * (kCount * warp + n) + (sizeof(C) == 1 ? 2 * (lane / 4) + h : 8 * h + lane / 4);
      };
      if (a.splits > 1) {
        const std::int64_t part =
            (std::int64_t(item.token) * a.heads + head) * a.splits + item.split;
        if (warp == 0 && lane < 4) {
          a.totals[2 * part] = most[e];
          a.totals[2 * part + 1] = (total[e][0] + total[e][1]) + (total[e][2] + total[e][3]);
        }
#pragma unroll
        for (int n = 0; n < kCount; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h) a.sums[part * kHead + column(n, h)] = sum[n][2 * h + e];
      } else {
        T* const y = static_cast<T*>(a.y) + item.token * a.y_stride + std::int64_t(head) * kHead;
        const float factor = __frcp_rn(joined_total[e]);
#pragma unroll
        for (int n = 0; n < kCount; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            y[column(n, h)] = rounded_to<T>(__fmul_rn(joined[n][2 * h + e], factor));
      }
    }
  }
}

template <class T, class C, int kHead>
__global__ void __launch_bounds__(DecodeLayout<C, kHead>::kThreads, decode_blocks(sizeof(C)))
    attention_decode_kernel(const AttentionArgs a, const __grid_constant__ CacheMaps maps) {
  using L = DecodeLayout<C, kHead>;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  if (threadIdx.x == 0) {
    L::Tiles::init(shared, 1, kRoundTiles);
    L::Items::init(shared, 1, kRoundTiles);
    ptx::barrier_init_fence();
    ptx::prefetch_map(maps.k);
    ptx::prefetch_map(maps.v);
  }
  __syncthreads();
  if (threadIdx.x / 32 == kRoundTiles) {
    DecodeLoader<T, C, kHead>(a, maps, shared, shared_data).run();
  } else {
    begin_kernel();
    compute_decode<T, C, kHead>(a, shared, shared_data);
  }
}

template <class T, class C, int kHead>
void start_attention_decode(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  const int box_tokens = std::gcd(args.cache.block_tokens, 16);
  const CacheMaps maps = cache_maps<C, kHead>(args, box_tokens);
  using L = DecodeLayout<C, kHead>;
  launch(stream, {.blocks = blocks, .threads = L::kThreads, .shared_bytes = L::kSharedBytes},
         attention_decode_kernel<T, C, kHead>, args, maps);
  if (args.splits > 1) join_parts<T>(stream, args);
}

template <class T, class C>
void attention_decode_of(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  args.head_dim == 64 ? start_attention_decode<T, C, 64>(stream, args, blocks)
                      : start_attention_decode<T, C, 128>(stream, args, blocks);
}

}  // namespace ostro::cuda
