#include "tensor/dtype.h"

#include <cstring>

namespace ostro {

// Without branches, so that the loops of convert() become vector code.

// Binary16 has 5 exponent bits (bias 15) and 10 of mantissa. A float's exponent is biased by 112
// more; the product also makes subnormals right.
float to_float(f16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
  const auto finite = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  constexpr std::uint32_t kInfinity = 0x7c00u << 13;
  return std::bit_cast<float>(sign | (magnitude >= kInfinity ? magnitude | 0x7f800000u : finite));
}

f16 to_f16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  const std::uint32_t normal =
      ((magnitude + 0xfffu + ((magnitude >> 13) & 1)) >> 13) - ((127 - 15) << 10);
  // Below 2^-14: adding 0.5 puts the units of 2^-24 at the end of the mantissa, rounded by the FPU.
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  std::uint32_t value = magnitude < 0x38800000u ? tiny : normal;
  value = magnitude >= 0x477ff000u ? 0x7c00u : value;  // rounds to 65536 or more
  value = magnitude > 0x7f800000u ? 0x7e00u : value;
  return {std::uint16_t(sign | value)};
}

float to_float(f8e4m3 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x80u) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // The exponent of a float is biased by 120 more; the product also makes subnormals right.
  return std::bit_cast<float>(
      sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f));
}

f8e4m3 to_f8e4m3(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 24) & 0x80u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  constexpr std::uint32_t kMax = 0x43e00000u;        // 448
  constexpr std::uint32_t kMinNormal = 0x3c800000u;  // 2^-6
  // Normal: half a unit is added below bit 20 and the exponent's bias lowered by 120. Subnormal:
  // adding 2^14 puts the units of 2^-9 at the end of the mantissa, rounded by the FPU.
  const std::uint32_t capped = magnitude < kMax ? magnitude : kMax;
  const std::uint32_t normal = ((capped + 0x7ffffu + ((capped >> 20) & 1)) >> 20) - (120u << 3);
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(capped) + 0x1p14f) - 0x46800000u;
  const std::uint32_t value = capped < kMinNormal ? tiny : normal;
  return {std::uint8_t(sign | (magnitude > 0x7f800000u ? 0x7fu : value))};
}

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::f8e4m3:
      return "f8e4m3";
    case DType::i8:
      return "i8";
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
  }
  OSTRO_CHECK(false, "DType ", int(dtype));
  return {};
}

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f8e4m3:
    case DType::i8:
    case DType::u8:
      return 1;
  }
  OSTRO_CHECK(false, "DType ", int(dtype));
  return 0;
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

void convert(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t elements) {
  if (elements == 0) return;
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, elements * size_of(to_dtype));
    return;
  }
  visit_dtype<float, f16, bf16, f8e4m3>(from_dtype, "convert", [&]<class From>() {
    visit_dtype<float, f16, bf16, f8e4m3>(to_dtype, "convert", [&]<class To>() {
      const From* source = static_cast<const From*>(from);
      To* target = static_cast<To*>(to);
      for (std::size_t i = 0; i < elements; ++i) target[i] = from_float<To>(to_float(source[i]));
    });
  });
}

}  // namespace ostro
