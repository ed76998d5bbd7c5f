// The product behind Linear, Route and ExpertMlp: sum[m, n] = x[m, k] w[n, k]^T, both row-major.
//
// A micro-kernel multiplies up to kTokens rows of x by kRows rows of w with one vector of partial
// sums for each output, along k: kTokens + kRows loads for kTokens * kRows multiply-adds. Nothing
// is packed, so weights are used where the engine file is mapped.
//
// Up to kGemmStagedRows tokens the weights stream through once and bound the time (2 bytes a bf16
// weight; the next rows are prefetched meanwhile). Above, blocks of kGemmStagedWeights x kGemmBlock
// weights are copied to the scratch, which stays in L2, and arithmetic bounds it.
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/simd.h"

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr int kRows = 4;
// 6 x 4 sums, 6 vectors of x and one of w: 31 of 32 registers. AVX2: 3 x 4 + 3 + 1 of 16.
constexpr int kTokens = kWidth == 16 ? 6 : 3;
static_assert(kTokens <= kGemmMaxTile);

#ifdef __AVX512BF16__
constexpr bool kHasDot = true;
#else
constexpr bool kHasDot = false;
#endif

// How one step along k multiplies: by f32 FMA after widening, or in bf16 pairs.
template <class X, class W>
struct Widened {
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
struct Pairs {
  using StagedX = Bf16;
  using StagedW = Bf16;
  static constexpr int kStep = 32;
  using Operand = __m512i;
  static Operand load_x(const Bf16* p) { return _mm512_loadu_si512(p); }
  static Operand load_x(const Bf16* p, std::int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p);
  }
  static Operand load_w(const Bf16* p) { return load_x(p); }
  static Operand load_w(const Bf16* p, std::int64_t n) { return load_x(p, n); }
  static Vec multiply_add(Operand x, Operand w, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
};
#endif

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
inline void put4(float* to, std::int64_t stride, const Vec (*v)[kRows]) {
  Vec q[4];
  for (int n = 0; n < 4; ++n) q[n] = quarters(halves(v[0][n], v[1][n]), halves(v[2][n], v[3][n]));
  const Vec s = singles(pairs(q[0], q[1]), pairs(q[2], q[3]));
  put<kAdd>(to, _mm512_castps512_ps128(s));
  put<kAdd>(to + stride, _mm512_extractf32x4_ps(s, 1));
  put<kAdd>(to + 2 * stride, _mm512_extractf32x4_ps(s, 2));
  put<kAdd>(to + 3 * stride, _mm512_extractf32x4_ps(s, 3));
}
template <bool kAdd>
inline void put2(float* to, std::int64_t stride, const Vec (*v)[kRows]) {
  Vec q[2];
  for (int n = 0; n < 2; ++n)
    q[n] = quarters(halves(v[0][n], v[0][n + 2]), halves(v[1][n], v[1][n + 2]));
  const Vec p = pairs(q[0], q[1]);
  const __m512d s = _mm512_castps_pd(singles(p, p));
  const __m512d packed = _mm512_permutex_pd(s, 0x08);
  put<kAdd>(to, _mm_castpd_ps(_mm512_castpd512_pd128(packed)));
  put<kAdd>(to + stride, _mm_castpd_ps(_mm512_extractf64x2_pd(packed, 2)));
}
#endif

// Prefetches `lines` cache lines in all while a tile is computed, a few at each step.
struct Ahead {
  const char* row[kRows];
  int rows;
};

// sum[m, n] (+)= x[m] . w[n] over k <= kGemmBlock elements, m < kM, n < kRows.
template <class Op, int kM, bool kAdd, class X, class W>
__attribute__((always_inline)) inline void tile_sum(const X* const* x, const W* const* w,
                                                    std::int64_t k, const Ahead& ahead, float* sum,
                                                    std::int64_t stride) {
  Vec s[kM][kRows];
#pragma GCC unroll 6
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kRows; ++n) s[m][n] = zero();
  std::int64_t i = 0;
  const std::int64_t whole = k / Op::kStep * Op::kStep;
  const int ahead_rows = ahead.rows;
  for (; i < whole; i += Op::kStep) {
    for (int r = 0; r < ahead_rows; ++r)
      _mm_prefetch(ahead.row[r] + i * std::int64_t(sizeof(W)), _MM_HINT_T0);
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
  int m = 0;
#ifdef __AVX512F__
  if constexpr (kM >= 4) {
    put4<kAdd>(sum, stride, s);
    m = 4;
  }
  if constexpr (kM % 4 >= 2) {
    put2<kAdd>(sum + m * stride, stride, s + m);
    m += 2;
  }
#endif
#pragma GCC unroll 6
  for (; m < kM; ++m) put<kAdd>(sum + m * stride, reduce4(s[m]));
}

template <class Op, int kM, class X, class W>
void tile(const X* const* x, const W* const* w, std::int64_t k, const Ahead& ahead, float* sum,
          std::int64_t stride, bool add_to) {
  if (add_to)
    tile_sum<Op, kM, true>(x, w, k, ahead, sum, stride);
  else
    tile_sum<Op, kM, false>(x, w, k, ahead, sum, stride);
}

template <class Op, class X, class W>
inline void tile_of(std::int64_t tokens, const X* const* x, const W* const* w, std::int64_t k,
                    const Ahead& ahead, float* sum, std::int64_t stride, std::int64_t outputs,
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
    case 1: tile<Op, 1>(x, w, k, ahead, to, to_stride, add_to); break;
    case 2: tile<Op, 2>(x, w, k, ahead, to, to_stride, add_to); break;
    case 3: tile<Op, 3>(x, w, k, ahead, to, to_stride, add_to); break;
    case 4: tile<Op, kTokens < 4 ? 1 : 4>(x, w, k, ahead, to, to_stride, add_to); break;
    case 5: tile<Op, kTokens < 5 ? 1 : 5>(x, w, k, ahead, to, to_stride, add_to); break;
    case 6: tile<Op, kTokens < 6 ? 1 : 6>(x, w, k, ahead, to, to_stride, add_to); break;
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

// Few tokens: every weight is read once, from where it lies.
template <class Op, class X, class W>
void streamed(const Gemm& g) {
  const X* x[kGemmStagedRows];
  for (std::int64_t m = 0; m < g.m; ++m) x[m] = x_row<X>(g, m);
  const std::int64_t tiles = (g.m + kTokens - 1) / kTokens;
  const std::int64_t blocks = (g.k + kGemmBlock - 1) / kGemmBlock;

  const W* w[kRows];
  for (std::int64_t n = 0; n < g.n; n += kRows) {
    const std::int64_t outputs = least(kRows, g.n - n);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t k0 = b * kGemmBlock;
      const std::int64_t k = least(kGemmBlock, g.k - k0);
      for (std::int64_t r = 0; r < kRows; ++r)
        w[r] = at<W>(g.w, (n + least(r, outputs - 1)) * g.w_stride + k0);
      // The weights after these: the next block of k, or the next rows.
      const bool last_block = b + 1 == blocks;
      const std::int64_t next_n = last_block ? n + kRows : n;
      const void* next = next_n < g.n ? at<W>(g.w, next_n * g.w_stride) : g.next_w;
      const std::int64_t next_k = last_block ? 0 : k0 + kGemmBlock;
      std::int64_t ahead_row = 0;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t m0 = g.m * t / tiles, m1 = g.m * (t + 1) / tiles;
        Ahead ahead{};
        if (next) {
          const std::int64_t until = kRows * (t + 1) / tiles;
          for (; ahead_row < until; ++ahead_row)
            ahead.row[ahead.rows++] =
                reinterpret_cast<const char*>(at<W>(next, ahead_row * g.w_stride + next_k));
        }
        const X* xs[kTokens];
        for (std::int64_t m = m0; m < m1; ++m) xs[m - m0] = x[m] + k0;
        tile_of<Op>(m1 - m0, xs, w, k, ahead, g.sum + m0 * g.sum_stride + n, g.sum_stride, outputs,
                    b > 0);
      }
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

// Many tokens: a block of weights is copied to L2, a tile of tokens to L1.
template <class Op, class StagedOp, class X, class W>
void staged(const Gemm& g) {
  using SX = typename Op::StagedX;
  using SW = typename Op::StagedW;
  SW* const w_block = static_cast<SW*>(g.scratch);
  SX* const x_tile = static_cast<SX*>(static_cast<void*>(w_block + kGemmStagedWeights * kGemmBlock));
  const SX* xs[kTokens];
  for (int m = 0; m < kTokens; ++m) xs[m] = x_tile + m * kGemmBlock;
  const std::int64_t tiles = (g.m + kTokens - 1) / kTokens;

  for (std::int64_t n0 = 0; n0 < g.n; n0 += kGemmStagedWeights) {
    const std::int64_t rows = least(kGemmStagedWeights, g.n - n0);
    for (std::int64_t k0 = 0; k0 < g.k; k0 += kGemmBlock) {
      const std::int64_t k = least(kGemmBlock, g.k - k0);
      for (std::int64_t r = 0; r < rows; ++r)
        copy_row(at<W>(g.w, (n0 + r) * g.w_stride + k0), w_block + r * kGemmBlock, k);
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t m0 = g.m * t / tiles, m1 = g.m * (t + 1) / tiles;
        for (std::int64_t m = m0; m < m1; ++m)
          copy_row(x_row<X>(g, m) + k0, x_tile + (m - m0) * kGemmBlock, k);
        for (std::int64_t r = 0; r < rows; r += kRows) {
          const std::int64_t outputs = least(kRows, rows - r);
          const SW* w[kRows];
          for (std::int64_t i = 0; i < kRows; ++i)
            w[i] = w_block + (r + least(i, outputs - 1)) * kGemmBlock;
          tile_of<StagedOp>(m1 - m0, xs, w, k, Ahead{}, g.sum + m0 * g.sum_stride + n0 + r,
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
  } else {
    streamed<Op, X, W>(g);
  }
}

template <class X, class W>
void run_widened(const Gemm& g) {
  run<Widened<X, W>, Widened<float, float>, X, W>(g);
}

}  // namespace

void gemm(const Gemm& g) {
  with_element(g.x_type, [&]<class X>(X) {
    if (g.w_type == Element::f32) return run_widened<X, float>(g);
#ifdef __AVX512BF16__
    if constexpr (__is_same(X, Bf16)) return run<Pairs, Pairs, Bf16, Bf16>(g);
#else
    if constexpr (__is_same(X, Bf16)) return run_widened<Bf16, Bf16>(g);
#endif
    if constexpr (__is_same(X, F16)) return run_widened<F16, F16>(g);
  });
}

}  // namespace ostro::cpu::OSTRO_ISA
