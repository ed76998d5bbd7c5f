#include "ops/draw.h"

#include <cmath>

#include "ops/contract.h"

namespace ostro::ops {
namespace {

constexpr std::uint64_t kPerDraw = 4;  // elements from 64 random bits
constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;

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

std::uint64_t bits_of(std::uint64_t key, std::uint64_t draw) { return mix(key + draw * kGolden); }

template <class T>
void draw(const T* quantiles, std::uint64_t key, std::uint64_t first, std::uint64_t elements,
          T* out) {
  const std::uint64_t end = first + elements;
  const auto one = [&](std::uint64_t i) {
    return quantiles[(bits_of(key, i / kPerDraw) >> (16 * (i % kPerDraw))) & 0xffff];
  };
  std::uint64_t i = first;
  for (; i < end && i % kPerDraw != 0; ++i) *out++ = one(i);
  for (; i + kPerDraw <= end; i += kPerDraw, out += kPerDraw) {
    const std::uint64_t bits = bits_of(key, i / kPerDraw);
    out[0] = quantiles[bits & 0xffff];
    out[1] = quantiles[(bits >> 16) & 0xffff];
    out[2] = quantiles[(bits >> 32) & 0xffff];
    out[3] = quantiles[bits >> 48];
  }
  for (; i < end; ++i) *out++ = one(i);
}

}  // namespace

void check(const Draw& op) {
  const Contract contract("Draw", op.y.device);
  contract.shape("quantiles", op.quantiles, 1, kQuantiles);
  contract.shape("y", op.y, op.y.rows, op.y.cols);
  contract.dtype("y", op.y, op.quantiles.dtype);
  contract.apart("y", op.y, "quantiles", op.quantiles);
  OSTRO_REQUIRE(
      op.first_row >= 0 && op.first_col >= 0 && op.first_col + op.y.cols <= op.matrix_cols,
      "Draw: y is ", describe(op.y), " from row ", op.first_row, " and column ", op.first_col,
      " of a matrix of ", op.matrix_cols, " columns");
}

void reference(const Draw& op) {
  check(op);
  const auto size = std::int64_t(size_of(op.y.dtype));
  for (std::int64_t r = 0; r < op.y.rows; ++r)
    draw_elements(op.quantiles.data, std::size_t(size), op.key,
                  std::uint64_t((op.first_row + r) * op.matrix_cols + op.first_col),
                  std::uint64_t(op.y.cols),
                  static_cast<char*>(op.y.data) + r * op.y.row_stride * size);
}

std::vector<float> normal_quantiles(double deviation) {
  std::vector<float> values(kQuantiles);
  for (std::size_t i = 0; i < kQuantiles / 2; ++i) {
    const double p = 0.5 + (double(i) + 0.5) / kQuantiles;
    const double x = normal_quantile(p) * deviation;
    values[kQuantiles / 2 + i] = float(x);
    values[kQuantiles / 2 - 1 - i] = float(-x);
  }
  return values;
}

std::uint64_t draw_key(std::uint64_t seed, std::string_view name) {
  return mix(hash(name) ^ mix(seed + kGolden));
}

void draw_elements(const void* quantiles, std::size_t size, std::uint64_t key, std::uint64_t first,
                   std::uint64_t elements, void* out) {
  const auto of = [&]<class T>() {
    draw(static_cast<const T*>(quantiles), key, first, elements, static_cast<T*>(out));
  };
  OSTRO_CHECK(size == 1 || size == 2 || size == 4, "elements of ", size, " bytes");
  if (size == 1) of.template operator()<std::uint8_t>();
  if (size == 2) of.template operator()<std::uint16_t>();
  if (size == 4) of.template operator()<std::uint32_t>();
}

}  // namespace ostro::ops
