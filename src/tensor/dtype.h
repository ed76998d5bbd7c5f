// Element types, and the one way to go from a runtime DType to a C++ type.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace ostro {

enum class DType : std::uint8_t { f32, f16, bf16, f8e4m3, i8, u8, i32 };

// Storage for a bfloat16 or an IEEE half; arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;
};
struct f16 {
  std::uint16_t bits = 0;
};
// OCP 8-bit floating point E4M3: 4 exponent bits of bias 7, 3 of mantissa; the largest is 448, the
// smallest 2^-9; bits 0x7f is NaN and there is no infinity (Micikevicius et al. 2022,
// arXiv:2209.05433).
struct f8e4m3 {
  std::uint8_t bits = 0;
};
inline constexpr float kMaxF8e4m3 = 448;

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
float to_float(f16 x);
float to_float(f8e4m3 x);

// All round to nearest, ties to even. NaN stays NaN; to_f16 overflows to infinity, to_f8e4m3
// saturates: what is beyond 448, infinity too, becomes 448.
inline bf16 to_bf16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}
f16 to_f16(float x);
f8e4m3 to_f8e4m3(float x);

template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(x);
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(x);
  else if constexpr (std::is_same_v<T, f8e4m3>)
    return to_f8e4m3(x);
  else
    return x;
}

template <class T>
inline constexpr DType dtype_of = [] {
  static_assert(sizeof(T) == 0, "not an element type");
  return DType::f32;
}();
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<f16> = DType::f16;
template <>
inline constexpr DType dtype_of<f8e4m3> = DType::f8e4m3;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::i32;
template <>
inline constexpr DType dtype_of<std::int8_t> = DType::i8;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::u8;

std::string_view name(DType);  // "bf16"
std::size_t size_of(DType);    // bytes an element
bool is_float(DType);          // f32, f16 or bf16: what operations compute in

// Elements of one type to another of f32, f16, bf16 and f8e4m3, rounded to nearest even.
void convert(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t elements);

// Calls fn.operator()<T>() for the T among Ts whose DType is `dtype`; throws Unsupported naming
// `who` and the types it does support. The list at the call site is the list of instantiations.
template <class... Ts, class F>
void visit_dtype(DType dtype, std::string_view who, F&& fn) {
  const bool found = ((dtype == dtype_of<Ts> && (fn.template operator()<Ts>(), true)) || ...);
  if (!found) {
    std::string known;
    ((known += ' ', known += name(dtype_of<Ts>)), ...);
    OSTRO_THROW(Unsupported, who, " has no ", name(dtype), " version; it has:", known);
  }
}

}  // namespace ostro
