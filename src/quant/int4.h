// Weights as 4-bit integers with a bf16 scale for each kInt4Group columns (symmetric: no zero
// point), and how a group lies in its 64 bytes.
//
// A scale is bf16: it has the range of the weights, whatever their dtype, costs 3 % of their bytes,
// and its product with an integer of -8 .. 7 is exact in f32. What it is rounded by does not
// matter, for the integers are chosen with the scale that is stored.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace ostro::quant {

inline constexpr std::int64_t kInt4Group = 128;
inline constexpr std::int64_t kInt4GroupBytes = kInt4Group / 2;

// Column c of a group is a nibble, stored as the integer + 8. The order is the one in which a
// warp's matrix product takes its operand from registers (PTX ISA, "mma.m16n8k16"): bytes 16 t ..
// 16 t + 15 are those of lane t of four, that is columns 2 t and 2 t + 1 of every eight, and in a
// word of them nibbles i and i + 4 are neighbours, so that (word >> 4 i) & 0x000f000f is a pair.
inline constexpr std::int64_t int4_byte(std::int64_t c) {
  const std::int64_t word = c / 32, half = c / 8 % 2, lane = c / 2 % 4, second = c % 2;
  return 16 * lane + 4 * word + 2 * second + half;
}
// 0: in the low nibble, 4: in the high one.
inline constexpr int int4_shift(std::int64_t c) { return int(c / 16 % 2) * 4; }

// The scale of a group: the value of the largest magnitude becomes -8. It has that value's sign
// reversed, so all sixteen integers are of use. x is finite and has kInt4Group values.
bf16 int4_scale(const float* x);

// Rounds to the nearest integer of -8 .. 7 in units of the scale, ties to even; kInt4GroupBytes.
void int4_encode(const float* x, bf16 scale, std::uint8_t* bytes);

// x[c] = integer * scale, exactly.
void int4_decode(const std::uint8_t* bytes, bf16 scale, float* x);

}  // namespace ostro::quant
