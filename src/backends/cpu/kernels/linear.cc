// The product behind Linear, Route and ExpertMlp: sum[m, n] = x[m, k] w[n, k]^T, both row-major.
//
// A micro-kernel multiplies up to kTokens rows of x by kRows rows of w with one vector of partial
// sums for each output, along k: kTokens + kRows loads for kTokens * kRows multiply-adds. Nothing
// is packed, so weights are used where the engine file is mapped.
//
// One or two tokens: a row of w after the other, in the order of memory: the hardware prefetcher
// keeps up with one stream (98 % of the read bandwidth on Zen 4) and not with four (45 %).
// Up to kGemmStagedRows tokens: every weight is read once, while the rows after it are prefetched
// to L2 in the order of memory. Above, blocks of kGemmStagedWeights x kGemmBlock weights stay in
// L2, copied to the scratch if they need widening or would collide there, and arithmetic bounds it.
// e4m3 and int8 weights become bf16 (or f32, where there is no VDPBF16PS) as they are loaded, for
// more than two tokens once for all of them; their scales are applied to the sums by the caller.
// int4 weights become f32, times the scales of their groups: exactly, since an integer of 4 bits
// times a bf16 has 12. For one or two tokens four rows at a time, in registers.
// With AMX, linear_amx.cc does all of this but for f32 and f16 x, and for int4.
//
// Zen 4, two threads, hidden 1024, of the ceilings of the same run (33 GB/s, 470 GFLOP/s in bf16):
// 91 to 98 % of the bandwidth for 1 and 8 tokens, 83 to 86 % of VDPBF16PS from 32 tokens on.
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/pairs.h"
#include "backends/cpu/kernels/simd.h"

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr int kRows = 4;
// 6 x 4 sums, 6 vectors of x and one of w: 31 of 32 registers. AVX2: 3 x 4 + 3 + 1 of 16.
constexpr int kTokens = kWidth == 16 ? 6 : 3;

// How one step along k multiplies: by f32 FMA after widening, or in bf16 pairs.
//
// Weights that are decoded at some cost (e4m3, integers) are decoded once for all tokens where
// there are more than two: `Decoded` multiplies x as it lies by the decoded weights.
template <class X, class W>
struct Widened {
  using Decoded = Widened<X, float>;
  using StagedX = float;
  using StagedW = float;
  static constexpr int kStep = kWidth;
  using Operand = Vec;
  static Operand load_x(const X* p) { return load(p); }
  static Operand load_x(const X* p, std::int64_t n) { return load(p, n); }
  static Operand load_w(const W* p) { return load(p); }
  static Operand load_w(const W* p, std::int64_t n) { return load(p, n); }
  static Vec multiply_add(Operand x, Operand w, Vec sum) { return fma(x, w, sum); }
};

#ifdef __AVX512BF16__
template <class W>
struct Pairs {
  using Decoded = Pairs<Bf16>;
  using StagedX = Bf16;
  using StagedW = Bf16;
  static constexpr int kStep = 32;
  using Operand = __m512i;
  static Operand load_x(const Bf16* p) { return load_pairs(p); }
  static Operand load_x(const Bf16* p, std::int64_t n) { return load_pairs(p, n); }
  static Operand load_w(const W* p) { return load_pairs(p); }
  static Operand load_w(const W* p, std::int64_t n) { return load_pairs(p, n); }
  static Vec multiply_add(Operand x, Operand w, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
};
#endif

template <class W>
inline constexpr bool kIsCoded = __is_same(W, E4m3) || __is_same(W, Int8) || __is_same(W, Int4);

// What k columns of a row take, in elements of W.
template <class W>
inline std::int64_t length(std::int64_t k) {
  return __is_same(W, Int4) ? k / 2 : k;
}

// The sums of the lanes of 4 vectors; each by the tree of reduce_add.
inline __m128 reduce4(const Vec* v) {
  const __m128 a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd));
}

template <bool kAdd>
inline void put(float* to, __m128 v) {
  _mm_storeu_ps(to, kAdd ? _mm_add_ps(_mm_loadu_ps(to), v) : v);
}

#ifdef __AVX512F__
inline Vec halves(Vec a, Vec b) {  // l + (l + 8) of both
  return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline Vec quarters(Vec a, Vec b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
inline Vec pairs(Vec a, Vec b) {
  return add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
inline Vec singles(Vec a, Vec b) {
  return add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

// 4 tokens x 4 outputs, and 2 x 4: the tree of reduce_add with the shuffles shared.
template <bool kAdd>
__attribute__((always_inline)) inline void put4(float* to, std::int64_t stride,
                                                const Vec (*v)[kRows]) {
  Vec q[4];
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) q[n] = quarters(halves(v[0][n], v[1][n]), halves(v[2][n], v[3][n]));
  const Vec s = singles(pairs(q[0], q[1]), pairs(q[2], q[3]));
  put<kAdd>(to, _mm512_castps512_ps128(s));
  put<kAdd>(to + stride, _mm512_extractf32x4_ps(s, 1));
  put<kAdd>(to + 2 * stride, _mm512_extractf32x4_ps(s, 2));
  put<kAdd>(to + 3 * stride, _mm512_extractf32x4_ps(s, 3));
}
template <bool kAdd>
__attribute__((always_inline)) inline void put2(float* to, std::int64_t stride,
                                                const Vec (*v)[kRows]) {
  Vec q[2];
#pragma GCC unroll 2
  for (int n = 0; n < 2; ++n)
    q[n] = quarters(halves(v[0][n], v[0][n + 2]), halves(v[1][n], v[1][n + 2]));
  const Vec p = pairs(q[0], q[1]);
  const __m512d s = _mm512_castps_pd(singles(p, p));
  const __m512d packed = _mm512_permutex_pd(s, 0x08);
  put<kAdd>(to, _mm_castpd_ps(_mm512_castpd512_pd128(packed)));
  put<kAdd>(to + stride, _mm_castpd_ps(_mm512_extractf64x2_pd(packed, 2)));
}
#endif

// Weights that will be needed soon, fetched to L2 a few lines at a step.
struct Ahead {
  const char* next;
  int lines_a_step;

  void step() {
    for (int l = 0; l < lines_a_step; ++l, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
};

// sum[m, n] (+)= x[m] . w[n] over k <= kGemmBlock elements, m < kM, n < kRows.
template <class Op, int kM, bool kAdd, class X, class W>
__attribute__((always_inline)) inline void tile_sum(const X* const* x, const W* const* w,
                                                    std::int64_t k, Ahead& ahead, float* sum,
                                                    std::int64_t stride) {
  Vec s[kM][kRows];
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) s[m][n] = zero();
  std::int64_t i = 0;
  const std::int64_t whole = k / Op::kStep * Op::kStep;
  for (; i < whole; i += Op::kStep) {
    ahead.step();
    typename Op::Operand a[kM];
#pragma GCC unroll 6
    for (int m = 0; m < kM; ++m) a[m] = Op::load_x(x[m] + i);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const typename Op::Operand b = Op::load_w(w[n] + i);
#pragma GCC unroll 6
      for (int m = 0; m < kM; ++m) s[m][n] = Op::multiply_add(a[m], b, s[m][n]);
    }
  }
  if (i < k) {
    typename Op::Operand a[kM];
#pragma GCC unroll 6
    for (int m = 0; m < kM; ++m) a[m] = Op::load_x(x[m] + i, k - i);
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) {
      const typename Op::Operand b = Op::load_w(w[n] + i, k - i);
#pragma GCC unroll 6
      for (int m = 0; m < kM; ++m) s[m][n] = Op::multiply_add(a[m], b, s[m][n]);
    }
  }
  // All indices constant: the sums stay in registers.
#ifdef __AVX512F__
  constexpr int kFours = kM / 4 * 4, kTwos = kM / 2 * 2;
  if constexpr (kFours > 0) put4<kAdd>(sum, stride, s);
  if constexpr (kTwos > kFours) put2<kAdd>(sum + kFours * stride, stride, s + kFours);
  if constexpr (kM > kTwos) put<kAdd>(sum + kTwos * stride, reduce4(s[kTwos]));
#else
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m) put<kAdd>(sum + m * stride, reduce4(s[m]));
#endif
}

template <class Op, int kM, class X, class W>
void tile(const X* const* x, const W* const* w, std::int64_t k, Ahead& ahead, float* sum,
          std::int64_t stride, bool add_to) {
  if (add_to)
    tile_sum<Op, kM, true>(x, w, k, ahead, sum, stride);
  else
    tile_sum<Op, kM, false>(x, w, k, ahead, sum, stride);
}

template <class Op, class X, class W>
inline void tile_of(std::int64_t tokens, const X* const* x, const W* const* w, std::int64_t k,
                    Ahead& ahead, float* sum, std::int64_t stride, std::int64_t outputs,
                    bool add_to) {
  float whole[kTokens * kRows];
  float* to = sum;
  std::int64_t to_stride = stride;
  if (outputs < kRows) {  // the last rows of w stand twice in the tile
    to = whole;
    to_stride = kRows;
    for (std::int64_t m = 0; m < tokens; ++m)
      for (std::int64_t n = 0; n < kRows; ++n)
        whole[m * kRows + n] = add_to && n < outputs ? sum[m * stride + n] : 0;
  }
  switch (tokens) {
    case 1:
      tile<Op, 1>(x, w, k, ahead, to, to_stride, add_to);
      break;
    case 2:
      tile<Op, 2>(x, w, k, ahead, to, to_stride, add_to);
      break;
    case 3:
      tile<Op, 3>(x, w, k, ahead, to, to_stride, add_to);
      break;
    case 4:
      tile < Op, kTokens<4 ? 1 : 4>(x, w, k, ahead, to, to_stride, add_to);
      break;
    case 5:
      tile < Op, kTokens<5 ? 1 : 5>(x, w, k, ahead, to, to_stride, add_to);
      break;
    case 6:
      tile < Op, kTokens<6 ? 1 : 6>(x, w, k, ahead, to, to_stride, add_to);
      break;
  }
  if (outputs < kRows)
    for (std::int64_t m = 0; m < tokens; ++m)
      for (std::int64_t n = 0; n < outputs; ++n) sum[m * stride + n] = whole[m * kRows + n];
}

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <class X>
inline const X* x_row(const Gemm& g, std::int64_t m) {
  return at<X>(g.x, (g.rows ? g.rows[m] : m) * g.x_stride);
}

// One or two tokens.
template <class Op, int kM, class X, class W>
void row_by_row(const Gemm& g) {
  const X* x[kM];
  for (int m = 0; m < kM; ++m) x[m] = x_row<X>(g, m);
  const auto chain = [&](const W* w, std::int64_t k0, std::int64_t k, Vec* s, int stride) {
    for (int m = 0; m < kM; ++m) s[m * stride] = zero();
    std::int64_t i = k0;
    for (; i + Op::kStep <= k; i += Op::kStep) {
      const typename Op::Operand b = Op::load_w(w + i);
#pragma GCC unroll 2
      for (int m = 0; m < kM; ++m)
        s[m * stride] = Op::multiply_add(Op::load_x(x[m] + i), b, s[m * stride]);
    }
    if (i < k) {
      const typename Op::Operand b = Op::load_w(w + i, k - i);
      for (int m = 0; m < kM; ++m)
        s[m * stride] = Op::multiply_add(Op::load_x(x[m] + i, k - i), b, s[m * stride]);
    }
  };
  std::int64_t n = 0;
  if (g.k <= kGemmBlock)  // four rows share a reduction
    for (; n + kRows <= g.n; n += kRows) {
      Vec s[kM][kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        chain(at<W>(g.w, (n + r) * g.w_stride), 0, g.k, &s[0][r], kRows);
      for (int m = 0; m < kM; ++m) put<false>(g.sum + m * g.sum_stride + n, reduce4(s[m]));
    }
  for (; n < g.n; ++n)
    for (std::int64_t k0 = 0; k0 < g.k; k0 += kGemmBlock) {
      Vec s[kM];
      chain(at<W>(g.w, n * g.w_stride), k0, least(g.k, k0 + kGemmBlock), s, 1);
      for (int m = 0; m < kM; ++m) {
        float& sum = g.sum[m * g.sum_stride + n];
        sum = k0 > 0 ? sum + reduce_add(s[m]) : reduce_add(s[m]);
      }
    }
}

template <class From, class To>
inline void copy_row(const From* from, To* to, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
  if (i < n) store(to + i, load(from + i, n - i), n - i);
}
inline void copy_row(const Bf16* from, Bf16* to, std::int64_t n) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(Bf16));
}
#ifdef __AVX512BF16__
template <class W>
inline void copy_row(const W* from, Bf16* to, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) _mm512_storeu_si512(to + i, load_pairs(from + i));
  if (i < n)
    _mm512_mask_storeu_epi16(to + i, static_cast<__mmask32>((1ull << (n - i)) - 1),
                             load_pairs(from + i, n - i));
}
#endif

inline float int4_scale(const Gemm& g, std::int64_t n, std::int64_t group) {
  const std::uint32_t bits = at<Bf16>(g.w_scale, n * g.w_scale_stride + group)->bits;
  return __builtin_bit_cast(float, bits << 16);
}

template <int kLane>
inline void store_columns(const Int4Lanes& lanes, float* to) {
  Vec w[32 / kWidth];
  lanes.columns<kLane>(w);
  for (int i = 0; i < 32 / kWidth; ++i) store(to + 32 * kLane + i * kWidth, w[i]);
}

// Columns k0 .. k0 + k of row n of the weights.
template <class W, class To>
inline void stage_row(const Gemm& g, std::int64_t n, std::int64_t k0, std::int64_t k, To* to) {
  const W* const from = at<W>(g.w, n * g.w_stride + length<W>(k0));
  if constexpr (__is_same(W, Int4)) {
    for (std::int64_t i = 0; i < k; i += kInt4Group) {
      const Int4Lanes lanes(from + i / 2, int4_scale(g, n, (k0 + i) / kInt4Group));
      store_columns<0>(lanes, to + i);
      store_columns<1>(lanes, to + i);
      store_columns<2>(lanes, to + i);
      store_columns<3>(lanes, to + i);
    }
  } else {
    copy_row(from, to, k);
  }
}

// s[m][r] += x[m] . (32 columns of each row), in the order of the columns.
template <int kM, int kLane, class X>
__attribute__((always_inline)) inline void add_columns(const Int4Lanes (&rows)[kRows],
                                                       const X* const* x, std::int64_t k,
                                                       Vec (&s)[kM][kRows]) {
  constexpr int kVectors = 32 / kWidth;
  Vec a[kM][kVectors];
#pragma GCC unroll 2
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) a[m][i] = load(x[m] + k + 32 * kLane + i * kWidth);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Vec w[kVectors];
    rows[r].template columns<kLane>(w);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
#pragma GCC unroll 2
      for (int m = 0; m < kM; ++m) s[m][r] = fma(a[m][i], w[i], s[m][r]);
  }
}

// One or two tokens and int4: four rows share what is loaded of x, and their chains of sums run
// side by side. The rows after them are fetched meanwhile: four streams are too many for the
// hardware prefetcher.
template <int kM, class X>
void few_int4(const Gemm& g) {
  const X* x[kM];
  for (int m = 0; m < kM; ++m) x[m] = x_row<X>(g, m);
  for (std::int64_t n = 0; n < g.n; n += kRows) {
    const std::int64_t outputs = least(kRows, g.n - n);
    const void* next = n + kRows < g.n ? at<Int4>(g.w, (n + kRows) * g.w_stride) : g.next_w;
    const char* ahead = static_cast<const char*>(next);
    for (std::int64_t k0 = 0; k0 < g.k; k0 += kGemmBlock) {
      const std::int64_t end = least(g.k, k0 + kGemmBlock);
      Vec s[kM][kRows];
      for (int m = 0; m < kM; ++m)
        for (int r = 0; r < kRows; ++r) s[m][r] = zero();
      for (std::int64_t k = k0; k < end; k += kInt4Group) {
        if (next)
          for (int l = 0; l < kRows; ++l, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T0);
        const auto row = [&](std::int64_t r) {
          const std::int64_t i = n + least(r, outputs - 1);
          return Int4Lanes(at<Int4>(g.w, i * g.w_stride + k / 2), int4_scale(g, i, k / kInt4Group));
        };
        const Int4Lanes rows[kRows] = {row(0), row(1), row(2), row(3)};
        add_columns<kM, 0>(rows, x, k, s);
        add_columns<kM, 1>(rows, x, k, s);
        add_columns<kM, 2>(rows, x, k, s);
        add_columns<kM, 3>(rows, x, k, s);
      }
      for (int m = 0; m < kM; ++m) {
        alignas(16) float sums[kRows];
        _mm_store_ps(sums, reduce4(s[m]));
        float* const to = g.sum + m * g.sum_stride + n;
        for (std::int64_t r = 0; r < outputs; ++r) to[r] = k0 > 0 ? to[r] + sums[r] : sums[r];
      }
    }
  }
}

// Few tokens: every weight is read once, from where it lies, or decoded once to the scratch.
template <class Op, class X, class W>
void streamed(const Gemm& g) {
  using TileOp = typename Op::Decoded;
  using Decoded = typename Op::StagedW;
  const X* x[kGemmStagedRows];
  for (std::int64_t m = 0; m < g.m; ++m) x[m] = x_row<X>(g, m);
  const std::int64_t tiles = (g.m + kTokens - 1) / kTokens;
  const int lines = kRows * Op::kStep * int(sizeof(W)) / 64;  // that the tiles of a step consume

  for (std::int64_t n = 0; n < g.n; n += kRows) {
    const std::int64_t outputs = least(kRows, g.n - n);
    const void* next = n + kRows < g.n ? at<W>(g.w, (n + kRows) * g.w_stride) : g.next_w;
    Ahead ahead{static_cast<const char*>(next), 0};
    for (std::int64_t k0 = 0; k0 < g.k; k0 += kGemmBlock) {
      const std::int64_t k = least(kGemmBlock, g.k - k0);
      const auto multiply = [&]<class O, class V>(O, const V* const* w) {
        for (std::int64_t t = 0; t < tiles; ++t) {
          const std::int64_t m0 = g.m * t / tiles, m1 = g.m * (t + 1) / tiles;
          const X* xs[kTokens];
          for (std::int64_t m = m0; m < m1; ++m) xs[m - m0] = x[m] + k0;
          ahead.lines_a_step =
              next ? static_cast<int>(lines * (t + 1) / tiles - lines * t / tiles) : 0;
          tile_of<O>(m1 - m0, xs, w, k, ahead, g.sum + m0 * g.sum_stride + n, g.sum_stride, outputs,
                     k0 > 0);
        }
      };
      if constexpr (kIsCoded<W>) {
        Decoded* const decoded = static_cast<Decoded*>(g.scratch);
        const Decoded* w[kRows];
        for (std::int64_t r = 0; r < kRows; ++r) {
          w[r] = decoded + r * kGemmBlock;
          if (r < outputs)
            stage_row<W>(g, n + r, k0, k, decoded + r * kGemmBlock);
          else
            w[r] = w[outputs - 1];
        }
        multiply(TileOp{}, w);
      } else {
        const W* w[kRows];
        for (std::int64_t r = 0; r < kRows; ++r)
          w[r] = at<W>(g.w, (n + least(r, outputs - 1)) * g.w_stride + k0);
        multiply(Op{}, w);
      }
    }
  }
}

// Many tokens: a block of weights is copied to L2, a tile of tokens to L1.
template <class Op, class StagedOp, class X, class W>
void staged(const Gemm& g) {
  using SX = typename Op::StagedX;
  using SW = typename Op::StagedW;
  SW* const w_block = static_cast<SW*>(g.scratch);
  SX* const x_tile =
      static_cast<SX*>(static_cast<void*>(w_block + kGemmStagedWeights * kGemmBlock));
  const SX* xs[kTokens];
  for (int m = 0; m < kTokens; ++m) xs[m] = x_tile + m * kGemmBlock;
  const std::int64_t tiles = (g.m + kTokens - 1) / kTokens;
  // Rows a multiple of 4 KiB apart would fall on the same few sets of the L2.
  const bool in_place =
      __is_same(W, SW) && (g.k <= kGemmBlock || g.w_stride * std::int64_t(sizeof(W)) % 4096 != 0);

  for (std::int64_t n0 = 0; n0 < g.n; n0 += kGemmStagedWeights) {
    const std::int64_t rows = least(kGemmStagedWeights, g.n - n0);
    for (std::int64_t k0 = 0; k0 < g.k; k0 += kGemmBlock) {
      const std::int64_t k = least(kGemmBlock, g.k - k0);
      const SW* block = w_block;
      std::int64_t block_stride = kGemmBlock;
      if (in_place) {
        block = at<SW>(g.w, n0 * g.w_stride + k0);
        block_stride = g.w_stride;
      } else {
        for (std::int64_t r = 0; r < rows; ++r)
          stage_row<W>(g, n0 + r, k0, k, w_block + r * kGemmBlock);
      }
      // The next block comes to L2 while this one is used: `lines` of its cache lines at a tile.
      const bool more_k = k0 + k < g.k, more_n = n0 + rows < g.n;
      const void* const next = more_k   ? at<W>(g.w, n0 * g.w_stride + length<W>(k0 + k))
                               : more_n ? at<W>(g.w, (n0 + rows) * g.w_stride)
                                        : g.next_w;
      const std::int64_t row_lines = length<W>(k) * std::int64_t(sizeof(W)) / 64;
      const std::int64_t lines = next ? row_lines * kRows / tiles + 1 : 0;
      std::int64_t ahead_row = 0, ahead_line = 0;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t m0 = g.m * t / tiles, m1 = g.m * (t + 1) / tiles;
        for (std::int64_t m = m0; m < m1; ++m)
          copy_row(x_row<X>(g, m) + k0, x_tile + (m - m0) * kGemmBlock, k);
        for (std::int64_t r = 0; r < rows; r += kRows) {
          const std::int64_t outputs = least(kRows, rows - r);
          const SW* w[kRows];
          for (std::int64_t i = 0; i < kRows; ++i)
            w[i] = block + (r + least(i, outputs - 1)) * block_stride;
          for (std::int64_t l = 0; l < lines && ahead_row < rows; ++l) {
            _mm_prefetch(reinterpret_cast<const char*>(at<W>(next, ahead_row * g.w_stride)) +
                             ahead_line * 64,
                         _MM_HINT_T1);
            if (++ahead_line >= row_lines) {
              ahead_line = 0;
              ++ahead_row;
            }
          }
          Ahead none{};
          tile_of<StagedOp>(m1 - m0, xs, w, k, none, g.sum + m0 * g.sum_stride + n0 + r,
                            g.sum_stride, outputs, k0 > 0);
        }
      }
    }
  }
}

template <class Op, class StagedOp, class X, class W>
void run(const Gemm& g) {
  if (g.k == 0) {
    for (std::int64_t m = 0; m < g.m; ++m)
      for (std::int64_t n = 0; n < g.n; ++n) g.sum[m * g.sum_stride + n] = 0;
  } else if (g.m > kGemmStagedRows) {
    staged<Op, StagedOp, X, W>(g);
  } else if (g.m > 2) {
    streamed<Op, X, W>(g);
  } else if constexpr (__is_same(W, Int4)) {
    if (g.m == 2) few_int4<2, X>(g);
    if (g.m == 1) few_int4<1, X>(g);
  } else if (g.m == 2) {
    row_by_row<Op, 2, X, W>(g);
  } else if (g.m == 1) {
    row_by_row<Op, 1, X, W>(g);
  }
}

template <class X, class W>
void run_widened(const Gemm& g) {
  run<Widened<X, W>, Widened<float, float>, X, W>(g);
}

}  // namespace

std::int64_t gemm_scratch_bytes(std::int64_t m, std::int64_t k) {
  std::int64_t bytes = m > kGemmStagedRows ? (kGemmStagedWeights + kTokens) * kGemmBlock * 4
                                           : kRows * kGemmBlock * 4;
#ifdef __AMX_BF16__
  const std::int64_t tiles = gemm_tiles_scratch_bytes(m, k);
  if (bytes < tiles) bytes = tiles;
#endif
  (void)k;
  return bytes;
}

bool packs([[maybe_unused]] Element x, [[maybe_unused]] Element w) {
#ifdef __AMX_BF16__
  return x == Element::bf16 && (w == Element::bf16 || w == Element::e4m3 || w == Element::int8);
#else
  return false;
#endif
}

void gemm(const Gemm& g) {
#ifdef __AMX_BF16__
  if (packs(g.x_type, g.w_type) && g.k > 0) return gemm_tiles(g);
#endif
  with_element(g.x_type, [&]<class X>(X) {
    if (g.w_type == Element::f32) return run_widened<X, float>(g);
    if (g.w_type == Element::int4) return run_widened<X, Int4>(g);
#ifdef __AVX512BF16__
    if constexpr (__is_same(X, Bf16)) {
      if (g.w_type == Element::e4m3) return run<Pairs<E4m3>, Pairs<Bf16>, Bf16, E4m3>(g);
      if (g.w_type == Element::int8) return run<Pairs<Int8>, Pairs<Bf16>, Bf16, Int8>(g);
      return run<Pairs<Bf16>, Pairs<Bf16>, Bf16, Bf16>(g);
    }
#endif
    if (g.w_type == Element::e4m3) return run_widened<X, E4m3>(g);
    if (g.w_type == Element::int8) return run_widened<X, Int8>(g);
    if constexpr (__is_same(X, Bf16)) return run_widened<Bf16, Bf16>(g);
    if constexpr (__is_same(X, F16)) return run_widened<F16, F16>(g);
  });
}

}  // namespace ostro::cpu::OSTRO_ISA
