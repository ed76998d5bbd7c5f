// What the machine gives at best, for stating a kernel's speed as a fraction of it.
#include "backends/cpu/kernels/amx.h"
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/simd.h"

namespace ostro::cpu::OSTRO_ISA {

void read_memory(const void* from, std::int64_t bytes) {
  const char* p = static_cast<const char*>(from);
  Vec a = zero(), b = zero(), c = zero(), d = zero();
  constexpr std::int64_t kVec = sizeof(Vec);
  for (std::int64_t i = 0; i + 4 * kVec <= bytes; i += 4 * kVec) {
    a = add(a, load(reinterpret_cast<const float*>(p + i)));
    b = add(b, load(reinterpret_cast<const float*>(p + i + kVec)));
    c = add(c, load(reinterpret_cast<const float*>(p + i + 2 * kVec)));
    d = add(d, load(reinterpret_cast<const float*>(p + i + 3 * kVec)));
  }
  a = add(add(a, b), add(c, d));
  asm volatile("" : : "x"(a));
}

namespace {

template <class Step>
inline void twelve_chains(std::int64_t steps, Step&& step) {
  Vec s[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) s[i] = set1(static_cast<float>(i));
  for (std::int64_t l = 0; l < steps; ++l) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) s[i] = step(s[i]);
  }
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) s[0] = add(s[0], s[i]);
  asm volatile("" : : "x"(s[0]));
}

}  // namespace

double peak_multiply_add(Element type, std::int64_t steps) {
#ifdef __AMX_BF16__
  if (type ==
      Element::bf16) {  // four chains: a multiplication takes 52 cycles, one starts every 16
    const Tiles tiles;
    _tile_zero(4);
    _tile_zero(5);
    for (std::int64_t l = 0; l < steps; ++l) {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 5);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 5);
    }
    return 4.0 * kSide * kSide * kDepth * static_cast<double>(steps);
  }
#endif
#ifdef __AVX512BF16__
  if (type == Element::bf16) {
    __m512i x = _mm512_set1_epi32(0x3f803f80), y = _mm512_set1_epi32(0x30003000);
    twelve_chains(steps, [&](Vec s) {
      asm volatile("" : "+x"(x), "+x"(y));
      return _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)y);
    });
    return 12.0 * 32 * static_cast<double>(steps);
  }
#endif
  (void)type;
  Vec x = set1(1.0f), y = set1(1e-9f);
  twelve_chains(steps, [&](Vec s) {
    asm volatile("" : "+x"(x), "+x"(y));
    return fma(x, y, s);
  });
  return 12.0 * kWidth * static_cast<double>(steps);
}

}  // namespace ostro::cpu::OSTRO_ISA
