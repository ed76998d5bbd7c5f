// Weights drawn at random, for engines that measure speed and memory without a checkpoint.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace ostro::builder {

inline constexpr double kDummyDeviation = 0.02;

// Elements of N(0, 0.02): each depends on the seed, the tensor's name and the element's index in
// the whole tensor alone, so an engine holds the same model however it is cut. 16 random bits an
// element choose one of 65536 quantiles (up to 4.3 deviations). Source of the random bits:
// SplitMix64 of a counter (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195).
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
  std::vector<std::uint16_t> quantiles16_;  // the bits of f16 or bf16
  std::vector<float> quantiles32_;          // of f32
};

}  // namespace ostro::builder
