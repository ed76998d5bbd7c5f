// What the kernels of paged attention share, so that a query's result has the same bits in each
// (batch.invariant): the rows of a block, the order of the sums, their roundings.
//
// Order: tiles of 64 positions in parts of 512, by absolute position. The sums of a part start
// anew; its tiles join by the online softmax, then the parts join in order. Of a tile's weights
// those at positions equal modulo 8 are added first, then neighbours; the four sums add up over the
// part's tiles, and at its end to its total. In a product the tensor core adds 16 positions, or 16
// columns of a head, at a time, whichever instruction it is and whichever operand comes first. A
// softmax weight is f32 in the row's total and has 16 bits in the product with the values: of the
// activations' type, f16 on an e4m3 cache, whose numbers are f16 numbers too. Queries are then f16
// as well: bf16 ones times a power of two for each row, which its scores are divided by.
#pragma once

#include "backends/cuda/kernels/attention_mma.h"
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/requests.cuh"
#include "backends/cuda/ptx/exp2.cuh"

namespace ostro::cuda {

constexpr int kPositions = 64;  // of a tile
static_assert(kSplitTokens % kPositions == 0);
constexpr int kPartTiles = kSplitTokens / kPositions;

// The type of both operands of products; T: of activations, C: of the cache.
template <class T, class C>
using factor_t = std::conditional_t<std::is_same_v<T, C>, T, __half>;

// A block's rows and the positions that they see.
struct BlockRows {
  int kv_head, split;
  int request, token0;  // of the request's first token in the step
  int row0, all_rows;   // the first of the block's, all of the request's
  int position0;        // of the request's first token
  int begin, end;       // positions; none if begin >= end
  const std::int32_t* blocks;

  // The `at`-th of all.
  __device__ BlockRows(const AttentionArgs& a, int rows, int at) {
    split = at % a.splits;
    kv_head = at / a.splits % a.cache.kv_heads;
    // The last tiles of a prompt see most: they start first.
    const int tile = a.row_tiles - 1 - at / a.splits / a.cache.kv_heads;
    const auto first_tile = [&](int r) {
      return int(std::int64_t(a.requests.query_start[r]) * a.group / rows) + r;
    };
    request = last_request_of_warp(a.requests.count, tile, first_tile);
    token0 = a.requests.query_start[request];
    const int tokens = a.requests.query_start[request + 1] - token0;
    row0 = (tile - first_tile(request)) * rows;
    all_rows = tokens * a.group;
    position0 = a.requests.context_len[request] - tokens;
    blocks = a.requests.block_table + request * a.requests.table_stride;
    begin = end = 0;
    if (row0 >= all_rows) return;
    const int earliest = position0 + row0 / a.group;
    begin = a.window > 0 ? max(0, earliest - a.window + 1) : 0;
    end = position0 + (min(row0 + rows, all_rows) - 1) / a.group + 1;
    if (a.splits > 1) {
      begin = max(begin, split * kSplitTokens);
      end = min(end, (split + 1) * kSplitTokens);
    }
  }
};

// A row of a thread: a query head of a token, and the positions that it sees.
struct AttentionRow {
  bool there;
  int head, seen_from;
  unsigned seen;  // positions, from seen_from
  std::int64_t token;

  __device__ AttentionRow() = default;
  __device__ AttentionRow(const AttentionArgs& a, const BlockRows& b, int row) {
    there = row < b.all_rows;
    token = b.token0 + (there ? row / a.group : 0);
    head = b.kv_head * a.group + row % a.group;
    const int position = b.position0 + row / a.group;
    seen_from = max(b.begin, a.window > 0 ? position - a.window + 1 : 0);
    seen = there ? unsigned(max(0, position + 1 - seen_from)) : 0;
  }
  __device__ bool sees(int position) const { return unsigned(position - seen_from) < seen; }
};

// What `count` rows of a block see together.
struct SeenByAll {
  int all_from, all_end;  // every row sees [all_from, all_end); missing rows are left out
  __device__ SeenByAll(const AttentionArgs& a, const BlockRows& b, int row0, int count) {
    all_end = b.position0 + row0 / a.group + 1;
    all_from = a.window > 0
                   ? b.position0 + (min(row0 + count, b.all_rows) - 1) / a.group - a.window + 1
                   : 0;
  }
  // Whether some row does not see all of the positions of [begin, end).
  __device__ bool hides(int begin, int end) const { return end > all_end || begin < all_from; }
};

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

// What a row's weights are relative to after a tile whose largest score, times scale * log2(e), is
// `tile`: that of the first tile, until a later one would make weights larger than 2^8, so that
// sums are seldom multiplied (Zadouri et al. 2026, FlashAttention-4). f16 weights reach to 2^16.
__device__ inline float later_most(float most, float tile) {
  constexpr float kGrowth = 8;
  return tile > most + kGrowth ? tile : most;
}

// The online softmax of the two rows of a thread.
struct Softmax {
  float most[2], total[2];
  __device__ void start() {
    most[0] = most[1] = -INFINITY;
    total[0] = total[1] = 0;
  }
  // Scores [2 rows, 64 positions], 16 of each row in a thread, become weights: s[4 n + i] is of row
  // i / 2. keep: what the sums before are to be multiplied with.
  __device__ void step(float (&s)[kPositions / 2], const float (&scale_log2)[2], float (&keep)[2]) {
    float tile_most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kPositions / 2; ++n)
      tile_most[n / 2 % 2] = fmaxf(tile_most[n / 2 % 2], s[n]);
    float reference[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int d = 1; d < 4; d *= 2)
        tile_most[i] = fmaxf(tile_most[i], __shfl_xor_sync(~0u, tile_most[i], d));
      const float new_most = later_most(most[i], __fmul_rn(tile_most[i], scale_log2[i]));
      reference[i] = new_most == -INFINITY ? 0 : new_most;
      keep[i] = ptx::exp2(most[i] - reference[i]);
      most[i] = new_most;
    }
    float tile_total[2][2];  // of even and of odd positions
#pragma unroll
    for (int n = 0; n < kPositions / 2; ++n) {
      float& of = tile_total[n / 2 % 2][n % 2];
      s[n] = ptx::exp2(__fmaf_rn(s[n], scale_log2[n / 2 % 2], -reference[n / 2 % 2]));
      of = n < 4 ? s[n] : __fadd_rn(of, s[n]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      total[i] = __fmaf_rn(total[i], keep[i], __fadd_rn(tile_total[i][0], tile_total[i][1]));
  }
  // total of the whole rows, which four threads share.
  __device__ void add_up_totals() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      for (int d = 1; d < 4; d *= 2) total[i] += __shfl_xor_sync(~0u, total[i], d);
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

template <>
struct Bits<__nv_fp8_e4m3> {  // four in a word; none is infinite
  __device__ static std::uint32_t not_finite(std::uint32_t word) {
    return __vcmpeq4(word & 0x7f7f7f7fu, 0x7f7f7f7fu);
  }
};

// x and y rounded, x in the lower half.
template <class T>
__device__ inline std::uint32_t rounded_pair(float x, float y) {
  const auto bits = [](auto pair) { return reinterpret_cast<const std::uint32_t&>(pair); };
  if constexpr (std::is_same_v<T, __half>)
    return bits(__floats2half2_rn(x, y));
  else
    return bits(__floats2bfloat162_rn(x, y));
}

// The queries of a thread's two rows, q[k][i] of row i % 2, from bf16 to f16: times the power of
// two that brings the row's largest to [2^14, 2^15). What rounding loses is 2^-39 of the largest or
// less. Four threads have a row. `scale` makes up for it.
template <int kWords>
__device__ inline void to_half(std::uint32_t (&q)[kWords][4], float (&scale)[2]) {
  const auto wide = [](std::uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  };
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = 0;
#pragma unroll
    for (int k = 0; k < kWords; ++k)
#pragma unroll
      for (int i = r; i < 4; i += 2) {
        const float2 two = wide(q[k][i]);
        most = fmaxf(most, fmaxf(fabsf(two.x), fabsf(two.y)));
      }
    for (int d = 1; d < 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    // 2^x has the exponent bits 127 + x; rows of zeros, whose 2^x would be infinite, take 2^100.
    const int exponent = int(__float_as_uint(most) >> 23);
    const int up = min(127 + 14 - exponent, 100);
    factor[r] = __uint_as_float(unsigned(127 + up) << 23);
    scale[r] *= __uint_as_float(unsigned(127 - up) << 23);
  }
#pragma unroll
  for (int k = 0; k < kWords; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = wide(q[k][i]);
      q[k][i] = rounded_pair<__half>(two.x * factor[i % 2], two.y * factor[i % 2]);
    }
}

// Two e4m3 numbers as f16 ones, which is exact.
__device__ inline std::uint32_t widen_e4m3(std::uint32_t two) {
  const __half2 half(__nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(two), __NV_E4M3));
  return reinterpret_cast<const std::uint32_t&>(half);
}

}  // namespace ostro::cuda
