#include "builder/dummy.h"

#include "ops/draw.h"

namespace ostro::builder {

std::vector<std::byte> dummy_quantiles(DType dtype) {
  OSTRO_CHECK(is_float(dtype), name(dtype));
  const std::vector<float> values = ops::normal_quantiles(kDummyDeviation);
  std::vector<std::byte> quantiles(values.size() * size_of(dtype));
  convert(values.data(), DType::f32, quantiles.data(), dtype, values.size());
  return quantiles;
}

DummyWeights::DummyWeights(DType dtype, std::uint64_t seed)
    : dtype_(dtype), seed_(seed), quantiles_(dummy_quantiles(dtype)) {}

void DummyWeights::fill(std::string_view name, std::uint64_t first, std::uint64_t elements,
                        void* out) const {
  ops::draw_elements(quantiles_.data(), size_of(dtype_), ops::draw_key(seed_, name), first,
                     elements, out);
}

}  // namespace ostro::builder
