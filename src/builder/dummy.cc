#include "builder/dummy.h"

#include <cmath>

#include "ops/draw.h"
#include "quant/e4m3.h"
#include "quant/int8.h"

namespace ostro::builder {

namespace {

// Any two of 256 quantiles, as the two integers of a byte.
std::vector<std::byte> int4_quantiles(const std::vector<float>& values) {
  constexpr std::size_t kEach = 256;
  static_assert(kEach * kEach == ops::kQuantiles);
  const float factor = 7 / values.back();
  std::vector<unsigned> integers;
  for (std::size_t i = 0; i < kEach; ++i)
    integers.push_back(unsigned(std::nearbyint(values[i * kEach + kEach / 2] * factor) + 8));
  std::vector<std::byte> bytes;
  for (const unsigned high : integers)
    for (const unsigned low : integers) bytes.push_back(std::byte(high << 4 | low));
  return bytes;
}

}  // namespace

std::vector<std::byte> dummy_quantiles(DType dtype) {
  std::vector<float> values = ops::normal_quantiles(kDummyDeviation);
  if (dtype == DType::u8) return int4_quantiles(values);
  std::vector<std::byte> quantiles(values.size() * size_of(dtype));
  const auto count = std::int64_t(values.size());
  if (dtype == DType::i8) {
    quant::int8_encode(values.data(), count, quant::int8_scale(values.data(), count),
                       reinterpret_cast<std::int8_t*>(quantiles.data()));
    return quantiles;
  }
  OSTRO_CHECK(is_float(dtype) || dtype == DType::f8e4m3, name(dtype));
  const float factor = dtype == DType::f8e4m3 ? quant::e4m3_factor(values.back()) : 1;
  for (float& v : values) v *= factor;
  convert(values.data(), DType::f32, quantiles.data(), dtype, values.size());
  return quantiles;
}

std::vector<std::byte> dummy_scales(const model::TensorSlice& scales, DType weights) {
  static const float most = ops::normal_quantiles(kDummyDeviation).back();
  const float scale = weights == DType::f8e4m3 ? quant::e4m3_scale(most)
                      : weights == DType::i8   ? quant::int8_scale(&most, 1)
                                               : most / 7;
  const auto count = std::size_t(scales.row_range.size() * scales.col_range.size());
  const std::vector<float> values(count, scale);
  std::vector<std::byte> bytes(count * size_of(scales.dtype));
  convert(values.data(), DType::f32, bytes.data(), scales.dtype, count);
  return bytes;
}

DummyWeights::DummyWeights(DType dtype, std::uint64_t seed)
    : dtype_(dtype), seed_(seed), quantiles_(dummy_quantiles(dtype)) {}

void DummyWeights::fill(std::string_view name, std::uint64_t first, std::uint64_t elements,
                        void* out) const {
  ops::draw_elements(quantiles_.data(), size_of(dtype_), ops::draw_key(seed_, name), first,
                     elements, out);
}

}  // namespace ostro::builder
