// ops::PagedAttention on CUDA with tensor cores. The contract is in ops/attention.h.
//
// Rows:     the query heads that share a key head, of consecutive tokens of one request: row i of a
//           request is head i % group of its token i / group. A warp has 16.
// Grid:     tiles of rows x key heads x splits. Decoding: one warp a block, 64 KB of keys and
// values
//           in flight each, three blocks a multiprocessor; with few blocks, one for each 256
//           positions, joined by a second kernel. Prefill: four warps share each tile of 64
//           positions.
// Pipeline: 16-byte cp.async of the next tile's pages into swizzled shared memory, mma.m16n8k16 on
//           this one. Scores and softmax are f32; a softmax weight enters the product with the
//           values as a sum of two 16-bit numbers, which keeps 16 bits of it or more.
// Order:    by absolute position alone: 64 positions, 256 positions, all (plan/attention_plan.h).
// Traffic:  4 * head_dim bytes a position and key head; a prompt's again for each 64 rows, from L2.
// Bound by: memory when decoding; tensor cores and shared memory when prefilling.
// Floor on an H100: 4 * kv_heads * head_dim * positions / 3.15e12 s, 1.3 us at 1024 positions of 8
//           heads of 128; prefill 4 * heads * head_dim * tokens^2 / 2 / 757e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): decoding 1 request of
//           1024 positions 19.6 us, 8: 19.8 us, 64: 119 us (72 %), 128: 218 us (78 %); of 8192
//           positions 1: 27.8 us, 64: 796 us (86 %), 128: 1577 us (86 %). Prompts of 2048: 257 us
//           (18 %), 8192: 3.65 ms (20 %, 150 TFLOP/s).
//           What is short: prompts; half of the products are those of the low parts, and about 1600
//           instructions for each tile of a warp bound it.
#pragma once

#include "backends/cuda/kernels/attention_mma.h"
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/requests.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/exp2.cuh"
#include "backends/cuda/ptx/mma.cuh"

namespace ostro::cuda {

constexpr int kPositions = 64;  // of a tile
static_assert(kSplitTokens % kPositions == 0);
constexpr int kAttentionStages = 2;

// Joining two parts of a row: the factors of either, the new maximum. Both kernels use these.
struct Join {
  float most, old_factor, new_factor;
  __device__ Join(float old_most, float new_most) {
    most = fmaxf(old_most, new_most);
    const float reference = most == -INFINITY ? 0 : most;
    old_factor = ptx::exp2(old_most - reference);
    new_factor = ptx::exp2(new_most - reference);
  }
  __device__ float operator()(float a, float b) const {
    return __fmaf_rn(b, new_factor, __fmul_rn(a, old_factor));
  }
};

// Of two 16-bit numbers in a word.
template <class T>
struct Bits {
  static constexpr std::uint32_t kExponents = std::is_same_v<T, __half> ? 0x7c007c00u : 0x7f807f80u;
  static constexpr std::uint32_t kOne = std::is_same_v<T, __half> ? 0x3c00u : 0x3f80u;
  // All bits of those that are NaN or infinite.
  __device__ static std::uint32_t not_finite(std::uint32_t word) {
    return __vcmpeq2(word & kExponents, kExponents);
  }
};

// x and y as a sum of two pairs of 16-bit numbers: rounded, and what the rounding lost.
template <class T>
__device__ inline void split_pair(float x, float y, std::uint32_t& high, std::uint32_t& low) {
  const auto bits = [](auto pair) { return reinterpret_cast<const std::uint32_t&>(pair); };
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 rounded = __floats2half2_rn(x, y);
    const float2 back = __half22float2(rounded);
    high = bits(rounded);
    low = bits(__floats2half2_rn(x - back.x, y - back.y));
  } else {
    high = bits(__floats2bfloat162_rn(x, y));
    low = bits(__floats2bfloat162_rn(x - __uint_as_float(high << 16),
                                     y - __uint_as_float(high & 0xffff0000u)));
  }
}

template <int kHead, int kWarps>
struct AttentionLayout {
  static constexpr int kChunks = kHead / 8;                  // of 16 bytes, in a row
  static constexpr int kTileBytes = kPositions * kHead * 2;  // keys or values
  static constexpr int kRowsBytes =
      kAttentionStages * kPositions * 4;  // where the rows of a tile lie
  static constexpr int kJoinedBytes = kWarps * kWarpRows * kHead * 4;
  static constexpr int kSharedBytes = 2 * kAttentionStages * kTileBytes + kRowsBytes + kJoinedBytes;
};

// Eight e4m3 numbers as 16-bit ones, which is exact.
template <class T>
__device__ inline uint4 widen_e4m3(uint2 x) {
  uint4 out;
  auto* const pairs = reinterpret_cast<std::uint32_t*>(&out);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto two = __nv_fp8x2_storage_t((i < 2 ? x.x : x.y) >> 16 * (i % 2));
    const __half2 half(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3));
    if constexpr (std::is_same_v<T, __half>) {
      pairs[i] = reinterpret_cast<const std::uint32_t&>(half);
    } else {
      const float2 wide = __half22float2(half);
      const __nv_bfloat162 pair = __floats2bfloat162_rn(wide.x, wide.y);
      pairs[i] = reinterpret_cast<const std::uint32_t&>(pair);
    }
  }
  return out;
}

// C: the cache's elements, T or e4m3. The latter are widened on their way to shared memory, so
// their loads are not asynchronous: other blocks hide them.
template <class T, class C, int kHead, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) attention_mma_kernel(const AttentionArgs a) {
  using L = AttentionLayout<kHead, kWarps>;
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(128) unsigned char shared[];
  auto* const rows_shared =
      reinterpret_cast<std::int32_t*>(shared + 2 * kAttentionStages * L::kTileBytes);
  auto* const joined =
      reinterpret_cast<float*>(shared + 2 * kAttentionStages * L::kTileBytes + L::kRowsBytes);
  const std::uint32_t tiles = ptx::shared_address(shared);
  const auto synchronise = [] {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  };
  begin_kernel();

  // The block's rows.
  const int split = int(blockIdx.x) % a.splits;
  const int kv_head = int(blockIdx.x) / a.splits % a.cache.kv_heads;
  // The last tiles of a prompt see most: they start first.
  const int tile_index = a.row_tiles - 1 - int(blockIdx.x) / a.splits / a.cache.kv_heads;
  constexpr int kBlockRows = kWarps * kWarpRows;
  const auto first_tile = [&](int r) {
    return int(std::int64_t(a.requests.query_start[r]) * a.group / kBlockRows) + r;
  };
  const int request = last_request(a.requests.count, tile_index, first_tile);
  const int token0 = a.requests.query_start[request];
  const int tokens = a.requests.query_start[request + 1] - token0;
  const int row0 = (tile_index - first_tile(request)) * kBlockRows;
  const int all_rows = tokens * a.group;
  if (row0 >= all_rows) return;
  const int position0 = a.requests.context_len[request] - tokens;  // of the request's first token
  const std::int32_t* blocks = a.requests.block_table + request * a.requests.table_stride;

  // Positions that some row sees.
  const int last = position0 + (min(row0 + kBlockRows, all_rows) - 1) / a.group;
  const int earliest = position0 + row0 / a.group;
  int begin = a.window > 0 ? max(0, earliest - a.window + 1) : 0;
  int end = last + 1;
  const bool partial = a.splits > 1;
  if (partial) {
    begin = max(begin, split * kSplitTokens);
    end = min(end, (split + 1) * kSplitTokens);
    if (begin >= end) return;
  }

  // This thread's rows: lane / 4 and + 8 of its warp's 16.
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int head[2], seen_from[2];
  unsigned seen[2];  // positions, from seen_from
  std::int64_t token[2];
  bool there[2];
  const T* query[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + warp * kWarpRows + lane / 4 + 8 * i;
    there[i] = row < all_rows;
    token[i] = token0 + (there[i] ? row / a.group : 0);
    head[i] = kv_head * a.group + row % a.group;
    const int position = position0 + row / a.group;
    seen_from[i] = max(begin, a.window > 0 ? position - a.window + 1 : 0);
    seen[i] = there[i] ? unsigned(max(0, position + 1 - seen_from[i])) : 0;
    query[i] =
        static_cast<const T*>(a.q) + token[i] * a.q_stride + std::int64_t(head[i]) * a.head_dim;
  }
  std::uint32_t q[kHead / 16][4];
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 16 * k + 8 * (i / 2) + 2 * (lane % 4);
      q[k][i] = there[i % 2] && column < a.head_dim
                    ? *reinterpret_cast<const std::uint32_t*>(query[i % 2] + column)
                    : 0;
    }

  // Rows of a tile's positions in the cache: found a tile ahead of the loads that need them.
  constexpr int kFinds = (kPositions + kThreads - 1) / kThreads;
  std::int32_t found[kFinds];
  const auto find_rows = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kFinds; ++i) {
      const int p = tile * kPositions + int(threadIdx.x) + i * kThreads;
      found[i] = begin <= p && p < end ? std::int32_t(a.cache.row(blocks, kv_head, p)) : -1;
    }
  };
  const auto keep_rows = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kFinds; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      if (at < kPositions) rows_shared[stage * kPositions + at] = found[i];
    }
  };
  const auto load_tile = [&](int stage) {
    const std::uint32_t k_to = tiles + stage * 2 * L::kTileBytes, v_to = k_to + L::kTileBytes;
    constexpr bool kWiden = !std::is_same_v<T, C>;
#pragma unroll(kWiden ? 8 : 4)
    for (int i = int(threadIdx.x); i < kPositions * L::kChunks; i += kThreads) {
      const int p = i / L::kChunks, chunk = i % L::kChunks;
      const std::int64_t row = rows_shared[stage * kPositions + p];
      const bool load = row >= 0 && chunk * 8 < a.head_dim;
      const int bytes = load ? 16 : 0;
      const std::uint32_t to = p * kHead * 2 + ((chunk ^ (p & 7)) << 4);
      const std::int64_t k_at = load ? row * a.cache.k_stride + chunk * 8 : 0;
      const std::int64_t v_at = load ? row * a.cache.v_stride + chunk * 8 : 0;
      const C* const k = static_cast<const C*>(a.k) + k_at;
      const C* const v = static_cast<const C*>(a.v) + v_at;
      if constexpr (kWiden) {
        const auto eight = [&](const C* from) {
          return load ? *reinterpret_cast<const uint2*>(from) : uint2{0, 0};
        };
        const uint2 keys = eight(k), values = eight(v);
        ptx::store16(k_to + to, widen_e4m3<T>(keys));
        ptx::store16(v_to + to, widen_e4m3<T>(values));
      } else {
        ptx::copy16(k_to + to, k, bytes);
        ptx::copy16(v_to + to, v, bytes);
      }
    }
  };

  float sum[kHead / 8][4];
  float most[2], total[2];
  const auto start_part = [&] {
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = 0;
    most[0] = most[1] = -INFINITY;
    total[0] = total[1] = 0;
  };
  float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};
  float* const joined_row = joined + (warp * kWarpRows + lane / 4) * kHead;
  bool first_part = true;
  start_part();

  const int first_of_tiles = begin / kPositions, end_of_tiles = (end + kPositions - 1) / kPositions;
  // No row of this warp, nor any missing one, needs a mask before here.
  const int all_see = a.window > 0 || row0 + (warp + 1) * kWarpRows > all_rows
                          ? 0
                          : position0 + (row0 + warp * kWarpRows) / a.group + 1;
  // The first row sees positions before, the last one from here.
  const int first_end = position0 + (row0 + warp * kWarpRows) / a.group + 1;
  const int last_from =
      a.window > 0
          ? position0 + (min(row0 + (warp + 1) * kWarpRows, all_rows) - 1) / a.group - a.window + 1
          : 0;
  find_rows(first_of_tiles);
  keep_rows(0);
  find_rows(first_of_tiles + 1);
  keep_rows(1);
  synchronise();
  load_tile(0);
  ptx::copy_commit();
  for (int tile = first_of_tiles; tile < end_of_tiles; ++tile) {
    const int stage = (tile - first_of_tiles) % kAttentionStages;
    const bool more = tile + 1 < end_of_tiles;
    if constexpr (kWarps == 1) {  // two tiles in flight while it waits
      synchronise();
      if (more) load_tile(stage ^ 1);
      ptx::copy_commit();
      ptx::copy_wait<1>();
      synchronise();
    } else {
      ptx::copy_wait<0>();
      synchronise();  // this tile is there, and every warp has done with the other stage
      if (more) load_tile(stage ^ 1);
      ptx::copy_commit();
    }
    find_rows(tile + 2);
    const std::uint32_t k_tile = tiles + stage * 2 * L::kTileBytes, v_tile = k_tile + L::kTileBytes;

    // Scores: [16 rows, 64 positions]. Keys of the next 16 columns load during the products.
    float s[kPositions / 8][4] = {};
    std::uint32_t keys[2][kPositions / 16][4];
    const auto load_keys = [&](int k) {
#pragma unroll
      for (int n = 0; n < kPositions / 16; ++n) {
        // Matrices: positions 0-7 and 8-15 of 16, each with both halves of 16 columns.
        const int p = 16 * n + 8 * (lane / 16) + lane % 8, chunk = 2 * k + lane / 8 % 2;
        ptx::load_matrices(keys[k % 2][n], k_tile + p * kHead * 2 + ((chunk ^ (p & 7)) << 4));
      }
    };
    load_keys(0);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
      if (k + 1 < kHead / 16) load_keys(k + 1);
#pragma unroll
      for (int n = 0; n < kPositions / 16; ++n) {
        const auto& b = keys[k % 2][n];
        ptx::mma<T>(s[2 * n], q[k], b[0], b[1]);
        ptx::mma<T>(s[2 * n + 1], q[k], b[2], b[3]);
      }
    }

    // Softmax weights; a tile that a row does not see changes nothing of it.
    float tile_most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] *= a.scale_log2;
    if (tile * kPositions < begin || (tile + 1) * kPositions > all_see) {
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int p = tile * kPositions + 8 * n + 2 * (lane % 4) + i % 2;
          s[n][i] = unsigned(p - seen_from[i / 2]) < seen[i / 2] ? s[n][i] : -INFINITY;
        }
    }
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile_most[i / 2] = fmaxf(tile_most[i / 2], s[n][i]);
    float keep[2], reference[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int d = 1; d < 4; d *= 2)
        tile_most[i] = fmaxf(tile_most[i], __shfl_xor_sync(~0u, tile_most[i], d));
      const float new_most = fmaxf(most[i], tile_most[i]);
      reference[i] = new_most == -INFINITY ? 0 : new_most;
      keep[i] = ptx::exp2(most[i] - reference[i]);
      most[i] = new_most;
      total[i] *= keep[i];
    }
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = ptx::exp2(s[n][i] - reference[i / 2]);
        total[i / 2] += s[n][i];
      }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] *= keep[i / 2];

    // sum += weights * values, 32 columns at a time; the next values load during the products. Of
    // neighbouring products no two have one sum. A weight of 0 does not keep NaN and infinity out:
    // with kOdd, those values count as 0, and make NaN of the sums of the rows that do see them.
    constexpr int kSteps = kHead / 32;
    std::uint32_t values[2][2][4];
    const auto load_values = [&](int step) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        // Matrices: positions 0-7 and 8-15 of 16, of 8 columns and then of the next 8.
        const int p = 16 * (step / kSteps) + lane % 16;
        const int chunk = 4 * (step % kSteps) + 2 * n + lane / 16;
        ptx::load_matrices_transposed(values[step % 2][n],
                                      v_tile + p * kHead * 2 + ((chunk ^ (p & 7)) << 4));
      }
    };
    const auto add_products = [&]<bool kOdd>() {
      load_values(0);
#pragma unroll
      for (int k = 0; k < kPositions / 16; ++k) {
        std::uint32_t high[4], low[4], sees[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float x = s[2 * k + i / 2][2 * (i % 2)], y = s[2 * k + i / 2][2 * (i % 2) + 1];
          split_pair<T>(x, y, high[i], low[i]);
          if constexpr (kOdd) {
            const int p = tile * kPositions + 16 * k + 8 * (i / 2) + 2 * (lane % 4);
            const auto one = [&](int q) {
              return unsigned(q - seen_from[i % 2]) < seen[i % 2] ? Bits<T>::kOne : 0;
            };
            sees[i] = one(p) | one(p + 1) << 16;
          }
        }
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
          const int step = k * kSteps + n;
          if (step + 1 < kSteps * kPositions / 16) load_values(step + 1);
          auto& b = values[step % 2];
          if constexpr (kOdd) {
            std::uint32_t odd[2][4];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              const std::uint32_t mask = Bits<T>::not_finite(b[i / 4][i % 4]);
              odd[i / 4][i % 4] = mask & (Bits<T>::kOne * 0x10001u);
              b[i / 4][i % 4] &= ~mask;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float seen_odd[4] = {};
              ptx::mma<T>(seen_odd, sees, odd[i / 2][2 * (i % 2)], odd[i / 2][2 * (i % 2) + 1]);
#pragma unroll
              for (int j = 0; j < 4; ++j)
                if (seen_odd[j] > 0) sum[4 * n + i][j] = NAN;
            }
          }
          const auto add = [&](const std::uint32_t(&weights)[4]) {
            ptx::mma<T>(sum[4 * n], weights, b[0][0], b[0][1]);
            ptx::mma<T>(sum[4 * n + 1], weights, b[0][2], b[0][3]);
            ptx::mma<T>(sum[4 * n + 2], weights, b[1][0], b[1][1]);
            ptx::mma<T>(sum[4 * n + 3], weights, b[1][2], b[1][3]);
          };
          add(high);
          add(low);
        }
      }
    };
    // Whether some row of this warp does not see a position whose values are loaded.
    const bool hidden = min(end, (tile + 1) * kPositions) > first_end ||
                        (a.window > 0 && max(begin, tile * kPositions) < last_from);
    bool odd = false;
    if (hidden) {
      const auto* const words =
          reinterpret_cast<const uint4*>(shared + stage * 2 * L::kTileBytes + L::kTileBytes);
      for (int i = lane; i < L::kTileBytes / 16; i += 32) {
        const uint4 w = words[i];
        odd |= (Bits<T>::not_finite(w.x) | Bits<T>::not_finite(w.y) | Bits<T>::not_finite(w.z) |
                Bits<T>::not_finite(w.w)) != 0;
      }
      odd = __any_sync(~0u, odd);
    }
    if (odd)
      add_products.template operator()<true>();
    else
      add_products.template operator()<false>();

    // A part ends: it joins those before it.
    const bool part_ends = !more || (tile + 1) % (kSplitTokens / kPositions) == 0;
    if (part_ends) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        for (int d = 1; d < 4; d *= 2) total[i] += __shfl_xor_sync(~0u, total[i], d);
      if (!partial) {
        const Join join[2] = {{joined_most[0], most[0]}, {joined_most[1], most[1]}};
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float* const at = joined_row + (i / 2) * 8 * kHead + 8 * n + 2 * (lane % 4) + i % 2;
            const float old = first_part ? 0 : *at;
            const float both = join[i / 2](old, sum[n][i]);
            sum[n][i] = both;
            if (more) *at = both;
          }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          joined_total[i] = join[i](joined_total[i], total[i]);
          joined_most[i] = join[i].most;
        }
        first_part = false;
        if (more) start_part();
      }
    }
    keep_rows(stage);  // read after the next synchronisation
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!there[i]) continue;
    if (partial) {
      const std::int64_t part = (token[i] * a.heads + head[i]) * a.splits + split;
      if (lane % 4 == 0) {
        a.totals[2 * part] = most[i];
        a.totals[2 * part + 1] = total[i];
      }
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        if (column < a.head_dim)
          *reinterpret_cast<float2*>(a.sums + part * a.head_dim + column) =
              make_float2(sum[n][2 * i], sum[n][2 * i + 1]);
      }
    } else {
      T* const y =
          static_cast<T*>(a.y) + token[i] * a.y_stride + std::int64_t(head[i]) * a.head_dim;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        if (column < a.head_dim) {
          y[column] = rounded_to<T>(__fdiv_rn(sum[n][2 * i], joined_total[i]));
          y[column + 1] = rounded_to<T>(__fdiv_rn(sum[n][2 * i + 1], joined_total[i]));
        }
      }
    }
  }
}

// Joins the parts of one query head of one token, a block each.
constexpr int kJoinThreads = 64;
template <class T>
__global__ void __launch_bounds__(kJoinThreads) join_parts_kernel(const AttentionArgs a) {
  begin_kernel();
  const std::int64_t token = blockIdx.x / a.heads;
  const int head = int(blockIdx.x % a.heads);
  if (is_padding(a.requests, int(token))) return;
  const int request = request_of_token(a.requests, int(token));
  const int position = position_of_token(a.requests, request, int(token));
  const int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const std::int64_t part0 = (token * a.heads + head) * a.splits;
  for (int i = int(threadIdx.x); i < a.head_dim; i += kJoinThreads) {
    float most = -INFINITY, total = 0, sum = 0;
    for (int split = first / kSplitTokens; split <= position / kSplitTokens; ++split) {
      const std::int64_t part = part0 + split;
      const Join join(most, a.totals[2 * part]);
      sum = join(sum, a.sums[part * a.head_dim + i]);
      total = join(total, a.totals[2 * part + 1]);
      most = join.most;
    }
    static_cast<T*>(a.y)[token * a.y_stride + std::int64_t(head) * a.head_dim + i] =
        rounded_to<T>(__fdiv_rn(sum, total));
  }
}

template <class T, class C, int kHead, int kWarps>
void start_attention(cudaStream_t stream, const AttentionArgs& args) {
  launch(stream,
         {.blocks = std::int64_t(args.row_tiles) * args.cache.kv_heads * args.splits,
          .threads = kWarps * 32,
          .shared_bytes = AttentionLayout<kHead, kWarps>::kSharedBytes},
         attention_mma_kernel<T, C, kHead, kWarps>, args);
}

// The kernel for the smallest head that holds head_dim, then the join of its parts.
template <class T, class C>
void attention_mma_of(cudaStream_t stream, const AttentionArgs& args, int warps) {
  const auto with = [&]<int kHead>() {
    warps == 1 ? start_attention<T, C, kHead, 1>(stream, args)
               : start_attention<T, C, kHead, 4>(stream, args);
  };
  if (args.head_dim <= 64)
    with.template operator()<64>();
  else if (args.head_dim <= 128)
    with.template operator()<128>();
  else
    with.template operator()<256>();
  if (args.splits > 1)
    launch(stream, {.blocks = args.tokens * args.heads, .threads = kJoinThreads},
           join_parts_kernel<T>, args);
}

}  // namespace ostro::cuda
