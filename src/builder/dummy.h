// Weights drawn at random, for engines that measure speed and memory without a checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "model/layout.h"
#include "tensor/dtype.h"

namespace ostro::builder {

inline constexpr double kDummyDeviation = 0.02;

// Their quantiles in the dtype, as ops::Draw takes them: f32, f16 or bf16, or one of
// quant/weight.h's (f8e4m3, i8, u8: int4), whose scales are all the same and make the largest
// quantile the largest number. A byte of int4 has two weights, each one of 256 quantiles.
std::vector<std::byte> dummy_quantiles(DType dtype);
// The scales of a slice of a matrix of `weights` (model::scale_of).
std::vector<std::byte> dummy_scales(const model::TensorSlice& scales, DType weights);

// Elements of N(0, 0.02), drawn as ops::Draw does: each depends on the seed, the tensor's name and
// the element's index in the whole tensor alone, so an engine holds the same model however it is
// cut.
//
// const members may be called from any number of threads.
class DummyWeights {
 public:
  DummyWeights(DType dtype, std::uint64_t seed);

  // Elements [first, first + elements) of tensor `name` to `out`, of the dtype.
  void fill(std::string_view name, std::uint64_t first, std::uint64_t elements, void* out) const;

 private:
  DType dtype_;
  std::uint64_t seed_;
  std::vector<std::byte> quantiles_;
};

}  // namespace ostro::builder
