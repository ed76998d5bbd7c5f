#include "quant/e4m3.h"

#include <algorithm>
#include <cmath>

namespace ostro::quant {

float e4m3_amax(const float* x, std::int64_t n) {
  float amax = kE4m3LeastAmax;
  for (std::int64_t i = 0; i < n; ++i) {
    const float magnitude = std::abs(x[i]);
    amax = magnitude > amax ? magnitude : amax;
  }
  return amax;
}

void e4m3_encode(const float* x, std::int64_t n, float factor, f8e4m3* q) {
  for (std::int64_t i = 0; i < n; ++i) q[i] = to_f8e4m3(x[i] * factor);
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
