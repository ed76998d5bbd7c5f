#include "quant/e4m3.h"

#include <algorithm>
#include <bit>

namespace ostro::quant {

float e4m3_amax(const float* x, std::int64_t n) {
  // As integers, magnitudes are in order and their maximum may be taken in any.
  auto amax = std::bit_cast<std::int32_t>(kE4m3LeastAmax);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t bits = std::bit_cast<std::int32_t>(x[i]) & 0x7fffffff;
    const std::int32_t magnitude = bits > 0x7f800000 ? 0 : bits;
    amax = magnitude > amax ? magnitude : amax;
  }
  return std::bit_cast<float>(amax);
}

void e4m3_encode(const float* x, std::int64_t n, float factor, f8e4m3* q) {
  constexpr std::int64_t kPart = 512;
  float scaled[kPart];
  for (std::int64_t begin = 0; begin < n; begin += kPart) {
    const std::int64_t part = std::min(kPart, n - begin);
    for (std::int64_t i = 0; i < part; ++i) scaled[i] = x[begin + i] * factor;
    convert(scaled, DType::f32, q + begin, DType::f8e4m3, std::size_t(part));
  }
}

void e4m3_round(float* x, std::int64_t n, std::int64_t group) {
  for (std::int64_t begin = 0; begin < n; begin += group) {
    const std::int64_t end = std::min(n, begin + group);
    const float amax = e4m3_amax(x + begin, end - begin);
    const float factor = e4m3_factor(amax), scale = e4m3_scale(amax);
    for (std::int64_t i = begin; i < end; ++i) x[i] = to_float(to_f8e4m3(x[i] * factor)) * scale;
  }
}

}  // namespace ostro::quant
