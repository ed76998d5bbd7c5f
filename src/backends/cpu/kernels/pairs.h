// 32 elements as pairs of bf16, as VDPBF16PS and AMX multiply them; with n: the first n, then
// zeros.
#pragma once

#include "backends/cpu/kernels/simd.h"

#ifdef __AVX512BF16__

namespace ostro::cpu::OSTRO_ISA {
namespace {

inline __m512i load_pairs(const Bf16* p) { return _mm512_loadu_si512(p); }
inline __m512i load_pairs(const Bf16* p, std::int64_t n) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p);
}

inline __m512i load_pairs(const E4m3* p) {
  return bf16_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i load_pairs(const E4m3* p, std::int64_t n) {
  return bf16_of(_mm256_maskz_loadu_epi8(static_cast<__mmask32>((1ull << n) - 1), p));
}

inline __m512i narrow_pairs(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline __m512i load_pairs(const Int8* p) { return narrow_pairs(load(p), load(p + 16)); }
inline __m512i load_pairs(const Int8* p, std::int64_t n) {
  return narrow_pairs(load(p, n < 16 ? n : 16), n > 16 ? load(p + 16, n - 16) : zero());
}

}  // namespace
}  // namespace ostro::cpu::OSTRO_ISA

#endif
