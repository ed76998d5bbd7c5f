#include "builder/dummy.h"

#include "ops/draw.h"
#include "quant/e4m3.h"

namespace ostro::builder {

std::vector<std::byte> dummy_quantiles(DType dtype) {
  OSTRO_CHECK(is_float(dtype) || dtype == DType::f8e4m3, name(dtype));
  std::vector<float> values = ops::normal_quantiles(kDummyDeviation);
  const float factor = dtype == DType::f8e4m3 ? quant::e4m3_factor(values.back()) : 1;
  for (float& v : values) v *= factor;
  std::vector<std::byte> quantiles(values.size() * size_of(dtype));
  convert(values.data(), DType::f32, quantiles.data(), dtype, values.size());
  return quantiles;
}

float dummy_e4m3_scale() {
  return quant::e4m3_scale(ops::normal_quantiles(kDummyDeviation).back());
}

DummyWeights::DummyWeights(DType dtype, std::uint64_t seed)
    : dtype_(dtype), seed_(seed), quantiles_(dummy_quantiles(dtype)) {}

void DummyWeights::fill(std::string_view name, std::uint64_t first, std::uint64_t elements,
                        void* out) const {
  ops::draw_elements(quantiles_.data(), size_of(dtype_), ops::draw_key(seed_, name), first,
                     elements, out);
}

}  // namespace ostro::builder
