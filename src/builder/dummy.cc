#include "builder/dummy.h"

#include <algorithm>
#include <cmath>

namespace ostro::builder {
namespace {

constexpr std::size_t kQuantiles = 65536;
constexpr std::uint64_t kPerDraw = 4;  // elements from 64 random bits

constexpr std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// FNV-1a.
std::uint64_t hash(std::string_view name) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// The x with P(N(0,1) < x) = p, for 0.5 <= p < 1: Newton's method on the distribution function.
double normal_quantile(double p) {
  double x = 0;
  for (int i = 0; i < 30; ++i) {
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    const double step = (1 - p - std::erfc(x / std::sqrt(2.0)) / 2) / density;
    x -= step;
    if (std::abs(step) < 1e-12) break;
  }
  return x;
}

template <class T>
void draw(const T* quantiles, std::uint64_t key, std::uint64_t first, std::uint64_t elements,
          T* out) {
  const std::uint64_t end = first + elements;
  const auto bits_of = [&](std::uint64_t draw) { return mix(key + draw * 0x9e3779b97f4a7c15u); };
  std::uint64_t i = first;
  for (; i < end && i % kPerDraw != 0; ++i)
    *out++ = quantiles[(bits_of(i / kPerDraw) >> (16 * (i % kPerDraw))) & 0xffff];
  for (; i + kPerDraw <= end; i += kPerDraw, out += kPerDraw) {
    const std::uint64_t bits = bits_of(i / kPerDraw);
    out[0] = quantiles[bits & 0xffff];
    out[1] = quantiles[(bits >> 16) & 0xffff];
    out[2] = quantiles[(bits >> 32) & 0xffff];
    out[3] = quantiles[bits >> 48];
  }
  for (; i < end; ++i)
    *out++ = quantiles[(bits_of(i / kPerDraw) >> (16 * (i % kPerDraw))) & 0xffff];
}

}  // namespace

DummyWeights::DummyWeights(DType dtype, std::uint64_t seed) : dtype_(dtype), seed_(seed) {
  OSTRO_CHECK(is_float(dtype), name(dtype));
  std::vector<float> values(kQuantiles);
  for (std::size_t i = 0; i < kQuantiles / 2; ++i) {
    const double p = 0.5 + (double(i) + 0.5) / kQuantiles;
    const double x = normal_quantile(p) * kDummyDeviation;
    values[kQuantiles / 2 + i] = float(x);
    values[kQuantiles / 2 - 1 - i] = float(-x);
  }
  if (dtype == DType::f32) {
    quantiles32_ = std::move(values);
    return;
  }
  quantiles16_.resize(kQuantiles);
  convert(values.data(), DType::f32, quantiles16_.data(), dtype, kQuantiles);
}

void DummyWeights::fill(std::string_view name, std::uint64_t first, std::uint64_t elements,
                        void* out) const {
  const std::uint64_t key = mix(hash(name) ^ mix(seed_ + 0x9e3779b97f4a7c15u));
  if (dtype_ == DType::f32)
    draw(quantiles32_.data(), key, first, elements, static_cast<float*>(out));
  else
    draw(quantiles16_.data(), key, first, elements, static_cast<std::uint16_t*>(out));
}

}  // namespace ostro::builder
