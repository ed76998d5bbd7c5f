// How long synthetic prompts and answers are.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace ostro::loadgen {

using Random = std::mt19937_64;

//   "128"                 always 128 tokens
//   "uniform:64,256"      64 to 256, each as likely
//   "normal:128,32"       mean and standard deviation
//   "lognormal:128,0.5"   median, and the standard deviation of the logarithm
// The last two take bounds as well, "normal:128,32,16,512"; without them a length is at least 1.
class LengthDistribution {
 public:
  // Throws InvalidArgument naming `flag`, what stands there and what may.
  LengthDistribution(const std::string& spec, const std::string& flag);

  std::int64_t draw(Random&) const;

 private:
  enum class Kind { fixed, uniform, normal, lognormal };
  Kind kind_ = Kind::fixed;
  double first_ = 0, second_ = 0;
  std::int64_t least_ = 1, most_;
};

}  // namespace ostro::loadgen
