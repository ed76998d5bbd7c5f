#include "quant/int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ostro::quant {
namespace {

constexpr float kLeastMagnitude = 1e-30f;  // its scale and the inverse of that are normal numbers

}  // namespace

bf16 int4_scale(const float* x) {
  float most = 0;
  for (std::int64_t c = 0; c < kInt4Group; ++c)
    if (std::abs(x[c]) > std::abs(most)) most = x[c];
  if (std::abs(most) < kLeastMagnitude) most = kLeastMagnitude;
  return to_bf16(most / -8);
}

void int4_encode(const float* x, bf16 scale, std::uint8_t* bytes) {
  const float factor = 1 / to_float(scale);
  std::memset(bytes, 0, std::size_t(kInt4GroupBytes));
  for (std::int64_t c = 0; c < kInt4Group; ++c) {
    const float q = std::clamp(std::nearbyint(x[c] * factor), -8.0f, 7.0f);
    bytes[int4_byte(c)] |= std::uint8_t(int(q + 8) << int4_shift(c));
  }
}

void int4_decode(const std::uint8_t* bytes, bf16 scale, float* x) {
  const float s = to_float(scale);
  for (std::int64_t c = 0; c < kInt4Group; ++c)
    x[c] = float((bytes[int4_byte(c)] >> int4_shift(c) & 15) - 8) * s;
}

}  // namespace ostro::quant
