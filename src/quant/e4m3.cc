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

namespace {

// Sum of the squared errors of x, n <= kE4m3FitColumns, in units of amax / 448 and as magnitudes up
// to `most` are stored: no x is so large or small that it over- or underflows.
float squared_error(const float* x, std::int64_t n, float amax, float most) {
  float scaled[kE4m3FitColumns] = {}, back[kE4m3FitColumns];
  f8e4m3 q[kE4m3FitColumns];
  const float factor = e4m3_factor(most);
  for (std::int64_t i = 0; i < n; ++i) scaled[i] = x[i] * factor;
  convert(scaled, DType::f32, q, DType::f8e4m3, std::size_t(n));
  convert(q, DType::f8e4m3, back, DType::f32, std::size_t(n));
  constexpr std::int64_t kLanes = 8;
  float sums[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    const float error = back[i] - scaled[i];
    sums[i % kLanes] += error * error;
  }
  float sum = 0;
  for (const float s : sums) sum += s;
  const float unit = most / amax;
  return sum * unit * unit;
}

}  // namespace

float e4m3_fitted_amax(const float* x, std::int64_t n) {
  constexpr int kSteps = 8;
  const float amax = e4m3_amax(x, n);
  n = std::min(n, kE4m3FitColumns);
  float fitted = amax, least = squared_error(x, n, amax, amax);
  for (int t = 1; t < kSteps; ++t) {
    const float most = amax * (1 + float(t) / kSteps);
    if (!(e4m3_factor(most) > 0)) break;  // infinite
    const float error = squared_error(x, n, amax, most);
    if (error < least) {
      least = error;
      fitted = most;
    }
  }
  return fitted;
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
