// The vector of each instruction set: f32 lanes, loads and stores that convert, a fixed reduction
// tree, exp. All in an anonymous namespace: nothing here may be shared between instruction sets.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "backends/cpu/kernels/kernels.h"

namespace ostro::cpu::OSTRO_ISA {
namespace {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

struct E4m3 {
  std::uint8_t bits;
};
struct Int8 {
  std::int8_t value;
};
// Two of them.
struct Int4 {
  std::uint8_t bits;
};

// Of quant/int4.h.
constexpr std::int64_t kInt4Group = 128;
constexpr std::int64_t kInt4GroupBytes = kInt4Group / 2;

// Calls fn with a value of the element type of activations.
template <class Fn>
inline void with_element(Element e, Fn&& fn) {
  switch (e) {
    case Element::f32:
      return fn(float{});
    case Element::f16:
      return fn(F16{});
    case Element::bf16:
      return fn(Bf16{});
    case Element::e4m3:
    case Element::int8:
    case Element::int4:
      __builtin_unreachable();
  }
}

#ifdef __AVX512F__

using Vec = __m512;
constexpr int kWidth = 16;

inline __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec widen(__m256i v, Bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline Vec widen(__m256i v, F16) { return _mm512_cvtph_ps(v); }
template <class T>
inline Vec load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T{});
}
template <class T>
inline Vec load(const T* p, std::int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p), T{});
}
// As halves with an exponent that is 8 too small; a NaN is given all ones.
inline Vec widen(__m128i v, E4m3) {
  const __m256i w = _mm256_cvtepu8_epi16(v);
  const __m256i magnitude = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(w, magnitude), 8);
  const __m256i half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
  return mul(_mm512_cvtph_ps(_mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7fff))),
             set1(256.0f));
}
inline Vec load(const E4m3* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), E4m3{});
}
inline Vec load(const E4m3* p, std::int64_t n) {
  return widen(_mm_maskz_loadu_epi8(first(n), p), E4m3{});
}
inline Vec load(const Int8* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Vec load(const Int8* p, std::int64_t n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}

// A group of int4 in the order of its columns: 16 of them times `scale` are the first half of a
// lane's nibbles, the next 16 the second.
struct Int4Lanes {
  __m512i nibbles;
  Vec table;

  Int4Lanes(const Int4* p, float scale) {
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    nibbles = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, _mm512_loadu_si512(p)), bytes);
    const Vec integers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    table = mul(integers, set1(scale));
  }
  // Columns 32 kLane .. 32 kLane + 31.
  template <int kLane>
  void columns(Vec (&w)[2]) const {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(nibbles, kLane));
    w[0] = _mm512_permutexvar_ps(wide, table);  // by the low four bits
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), table);
  }
};
// 32 numbers that are not NaN as bf16, exactly. The exponent's bias is 120 more; subnormals, for
// which that does not hold, are looked up by their mantissa.
inline __m512i bf16_of(__m256i v) {
  const __m512i w = _mm512_cvtepu8_epi16(v);
  const __m512i subnormal = _mm512_castsi128_si512(_mm_setr_epi16(
      0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));  // 0 to 7 times 2^-9
  __m512i magnitude =
      _mm512_add_epi16(_mm512_and_si512(_mm512_slli_epi16(w, 4), _mm512_set1_epi16(0x7f0)),
                       _mm512_set1_epi16(120 << 7));
  magnitude = _mm512_mask_permutexvar_epi16(
      magnitude, _mm512_testn_epi16_mask(w, _mm512_set1_epi16(0x78)), w, subnormal);
  // magnitude | (w << 8 & 0x8000)
  return _mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi16(w, 8),
                                   _mm512_set1_epi16(static_cast<short>(0x8000)), 0xf8);
}

inline __m256i narrow(Vec v, F16) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
inline __m256i narrow(Vec v, Bf16) {
#ifdef __AVX512BF16__
  // Rounds to nearest even like ops::to_bf16, but makes denormals zero.
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
#endif
}
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void store(float* p, Vec v, std::int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
// The steps of ostro::to_f8e4m3.
inline __m128i narrow(Vec v, E4m3) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
  const __m512i capped = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x43e00000));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(capped, 20), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(capped, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
  const __m512i normal =
      _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
  const __m512i tiny =
      _mm512_sub_epi32(_mm512_castps_si512(add(_mm512_castsi512_ps(capped), set1(0x1p14f))),
                       _mm512_set1_epi32(0x46800000));
  __m512i bits = _mm512_mask_mov_epi32(
      normal, _mm512_cmplt_epi32_mask(capped, _mm512_set1_epi32(0x3c800000)), tiny);
  bits =
      _mm512_mask_mov_epi32(bits, _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000)),
                            _mm512_set1_epi32(0x7f));
  bits = _mm512_or_si512(bits, _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80)));
  return _mm512_cvtepi32_epi8(bits);
}
inline void store(E4m3* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, E4m3{}));
}
inline void store(E4m3* p, Vec v, std::int64_t n) {
  _mm_mask_storeu_epi8(p, first(n), narrow(v, E4m3{}));
}
template <class T>
inline void store(T* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
}
template <class T>
inline void store(T* p, Vec v, std::int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(v, T{}));
}

inline __m128 fold(
    Vec v) {  // lanes l, l + 4, l + 8, l + 12 as (l + (l + 8)) + ((l + 4) + (l + 12))
  const __m256 half = _mm256_add_ps(
      _mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }

// x where lane + offset lies in [from, to), else 0.
inline Vec keep_lanes(Vec x, std::int64_t from, std::int64_t to) {
  const auto clamp = [](std::int64_t i) { return i < 0 ? 0 : i > 16 ? 16 : i; };
  const auto below = [](std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1); };
  return _mm512_maskz_mov_ps(below(clamp(to)) & ~below(clamp(from)), x);
}
inline Vec keep_lanes_or(Vec x, Vec other, std::int64_t from, std::int64_t to) {
  const auto clamp = [](std::int64_t i) { return i < 0 ? 0 : i > 16 ? 16 : i; };
  const auto below = [](std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1); };
  return _mm512_mask_mov_ps(other, below(clamp(to)) & ~below(clamp(from)), x);
}

inline Vec round(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT); }
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }  // x * 2^n
inline Vec zero_below(Vec value, Vec x, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), value);
}

inline void transpose(Vec (&r)[kWidth]) {
  Vec t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  const auto lo = [](Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto hi = [](Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = lo(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = hi(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = lo(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = hi(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
  }
}

#else  // AVX2, FMA, F16C

using Vec = __m256;
constexpr int kWidth = 8;

inline __m256i first(std::int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, std::int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline Vec widen(__m128i v, Bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline Vec widen(__m128i v, F16) { return _mm256_cvtph_ps(v); }
template <class T>
inline Vec load(const T* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), T{});
}
template <class T>
inline Vec load(const T* p, std::int64_t n) {
  alignas(16) T part[8] = {};
  for (std::int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}

inline Vec widen_e4m3(__m128i v) {  // 8 bytes, as above
  const __m128i w = _mm_cvtepu8_epi16(v);
  const __m128i magnitude = _mm_and_si128(w, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_xor_si128(w, magnitude), 8);
  const __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), sign);
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
  return mul(_mm256_cvtph_ps(_mm_or_si128(half, _mm_srli_epi16(nan, 1))), set1(256.0f));
}
inline Vec load(const E4m3* p) {
  return widen_e4m3(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const E4m3* p, std::int64_t n) {
  E4m3 part[8] = {};
  for (std::int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}

inline Vec load(const Int8* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Vec load(const Int8* p, std::int64_t n) {
  Int8 part[8] = {};
  for (std::int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}

// As above.
struct Int4Lanes {
  __m128i nibbles[4];
  Vec factor;

  Int4Lanes(const Int4* p, float scale) : factor(set1(scale)) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m128i r[4];
    for (int i = 0; i < 4; ++i)
      r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    const __m128i low0 = _mm_unpacklo_epi32(r[0], r[1]), low1 = _mm_unpacklo_epi32(r[2], r[3]);
    const __m128i high0 = _mm_unpackhi_epi32(r[0], r[1]), high1 = _mm_unpackhi_epi32(r[2], r[3]);
    nibbles[0] = _mm_shuffle_epi8(_mm_unpacklo_epi64(low0, low1), order);
    nibbles[1] = _mm_shuffle_epi8(_mm_unpackhi_epi64(low0, low1), order);
    nibbles[2] = _mm_shuffle_epi8(_mm_unpacklo_epi64(high0, high1), order);
    nibbles[3] = _mm_shuffle_epi8(_mm_unpackhi_epi64(high0, high1), order);
  }
  template <int kLane>
  void columns(Vec (&w)[4]) const {
    const __m128i mask = _mm_set1_epi8(15);
    const __m128i half[2] = {_mm_and_si128(nibbles[kLane], mask),
                             _mm_and_si128(_mm_srli_epi16(nibbles[kLane], 4), mask)};
    for (int i = 0; i < 4; ++i) {
      const __m128i eight = i % 2 == 0 ? half[i / 2] : _mm_srli_si128(half[i / 2], 8);
      const __m256i wide = _mm256_sub_epi32(_mm256_cvtepu8_epi32(eight), _mm256_set1_epi32(8));
      w[i] = mul(_mm256_cvtepi32_ps(wide), factor);
    }
  }
};

// The steps of ostro::to_f8e4m3.
inline void store(E4m3* p, Vec v, std::int64_t n) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
  const __m256i capped = _mm256_min_epi32(magnitude, _mm256_set1_epi32(0x43e00000));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(capped, 20), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(capped, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
  const __m256i normal =
      _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), _mm256_set1_epi32(120 << 3));
  const __m256i tiny =
      _mm256_sub_epi32(_mm256_castps_si256(add(_mm256_castsi256_ps(capped), set1(0x1p14f))),
                       _mm256_set1_epi32(0x46800000));
  __m256i bits =
      _mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), capped));
  bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7f),
                            _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000)));
  bits = _mm256_or_si256(bits, _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80)));
  const __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  alignas(16) E4m3 part[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), _mm_packus_epi16(words, words));
  for (std::int64_t i = 0; i < n; ++i) p[i] = part[i];
}
inline void store(E4m3* p, Vec v) { store(p, v, 8); }

inline __m128i narrow(Vec v, F16) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
inline __m128i narrow(Vec v, Bf16) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  r = _mm256_srli_epi32(r, 16);
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0),
                         _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, Vec v, std::int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
template <class T>
inline void store(T* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, T{}));
}
template <class T>
inline void store(T* p, Vec v, std::int64_t n) {
  alignas(16) T part[8];
  store(part, v);
  for (std::int64_t i = 0; i < n; ++i) p[i] = part[i];
}

inline __m128 fold(Vec v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
inline float reduce_max(Vec v) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

inline Vec keep_lanes_or(Vec x, Vec other, std::int64_t from, std::int64_t to) {
  const auto clamp = [](std::int64_t i) { return static_cast<int>(i < 0 ? 0 : i > 8 ? 8 : i); };
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(clamp(from)), lane),
                                         _mm256_cmpgt_epi32(_mm256_set1_epi32(clamp(to)), lane));
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(in));
}
inline Vec keep_lanes(Vec x, std::int64_t from, std::int64_t to) {
  return keep_lanes_or(x, zero(), from, to);
}

inline Vec round(Vec v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec scale_by_power(Vec x, Vec n) {  // in two halves: n may be 128
  const __m256i i = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(i, 1);
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return mul(mul(x, power(half)), power(_mm256_sub_epi32(i, half)));
}
inline Vec zero_below(Vec value, Vec x, float limit) {
  return _mm256_and_ps(value, _mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_NLT_UQ));
}

inline void transpose(Vec (&r)[kWidth]) {
  Vec t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
    t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

#endif

inline Vec abs(Vec v) { return max(v, sub(zero(), v)); }

inline float reduce_add(Vec v) {
  const __m128 f = fold(v);
  const __m128 h = _mm_add_ps(f, _mm_movehl_ps(f, f));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

// e^x within 2 ulp; 0 below -87.3 (no denormals), 3.4e38 above 88.72. Cody and Waite's reduction
// x = n ln 2 + r in two steps, then the polynomial of Cephes' expf on |r| <= ln 2 / 2.
inline Vec exp(Vec x) {
  // In this order of operands NaN comes through.
  const Vec c = min(set1(88.72f), max(set1(-90.0f), x));
  const Vec n = round(mul(c, set1(1.44269504088896341f)));
  Vec r = fma(n, set1(-0.693359375f), c);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  return zero_below(scale_by_power(p, n), x, -87.3f);
}

inline float exp(float x) {
  const Vec v = exp(set1(x));
  return _mm_cvtss_f32(fold(keep_lanes(v, 0, 1)));
}

// A pointer to element i of an untyped row.
template <class T>
inline const T* at(const void* p, std::int64_t i) {
  return static_cast<const T*>(p) + i;
}
template <class T>
inline T* at(void* p, std::int64_t i) {
  return static_cast<T*>(p) + i;
}

}  // namespace
}  // namespace ostro::cpu::OSTRO_ISA
