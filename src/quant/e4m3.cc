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

// x, at most 448, as convert() rounds it to f8e4m3, in a form that compilers make vectors of.
float nearest_e4m3(float x) {
  constexpr float kEndsAtUnits = 0x1.8p14f;  // whose last bit is 2^-9, e4m3's smallest number
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t normal = (bits + 0x7ffffu + ((bits >> 20) & 1)) & ~0xfffffu;
  const auto tiny = std::bit_cast<std::uint32_t>((x + kEndsAtUnits) - kEndsAtUnits);
  // A choice without a branch.
  const std::uint32_t is_tiny = -std::uint32_t{(bits & 0x7fffffffu) < 0x3c800000u};  // 2^-6
  return std::bit_cast<float>((tiny & is_tiny) | (normal & ~is_tiny));
}

// Sum of the squared errors of x, in units of amax / 448, if magnitudes up to `most` are stored: no
// x is so large or small that it over- or underflows.
float squared_error(const float (&x)[kE4m3FitColumns], float amax, float most) {
  const float factor = e4m3_factor(most), unit = most / amax;
  float squares[kE4m3FitColumns];
  for (std::int64_t i = 0; i < kE4m3FitColumns; ++i) {
    const float scaled = x[i] * factor;
    const float error = nearest_e4m3(scaled) - scaled;
    squares[i] = error * error;
  }
  for (std::int64_t n = kE4m3FitColumns / 2; n > 0; n /= 2)
    for (std::int64_t i = 0; i < n; ++i) squares[i] += squares[n + i];
  return squares[0] * unit * unit;
}

}  // namespace

float e4m3_fitted_amax(const float* x, std::int64_t n) {
  constexpr int kSteps = 8;
  const float amax = e4m3_amax(x, n);
  float columns[kE4m3FitColumns] = {};  // zeros have no error
  std::copy_n(x, std::min(n, kE4m3FitColumns), columns);
  float fitted = amax, least = squared_error(columns, amax, amax);
  for (int t = 1; t < kSteps; ++t) {
    const float most = amax * (1 + float(t) / kSteps);
    if (!(e4m3_factor(most) > 0)) break;  // infinite
    const float error = squared_error(columns, amax, most);
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
