#include "loadgen/lengths.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace ostro::loadgen {
namespace {

constexpr std::int64_t kLongest = 1 << 24;  // no model reads more

// "1,2.5" as numbers; empty if it is anything else.
std::vector<double> numbers(std::string_view list) {
  std::vector<double> all;
  while (true) {
    double value = 0;
    const auto [end, error] = std::from_chars(list.data(), list.data() + list.size(), value);
    if (error != std::errc() || !std::isfinite(value)) return {};
    all.push_back(value);
    list.remove_prefix(std::size_t(end - list.data()));
    if (list.empty()) return all;
    if (list[0] != ',') return {};
    list.remove_prefix(1);
  }
}

bool is_length(double value) {
  return value >= 1 && value <= double(kLongest) && value == std::floor(value);
}

}  // namespace

LengthDistribution::LengthDistribution(const std::string& spec, const std::string& flag)
    : most_(kLongest) {
  const std::size_t colon = spec.find(':');
  const std::string name = colon == spec.npos ? "fixed" : spec.substr(0, colon);
  const auto values = numbers(colon == spec.npos ? spec : spec.substr(colon + 1));
  const std::size_t n = values.size();
  bool good = false;
  if (name == "fixed" && n == 1) {
    kind_ = Kind::fixed;
    good = is_length(values[0]);
  } else if (name == "uniform" && n == 2) {
    kind_ = Kind::uniform;
    good = is_length(values[0]) && is_length(values[1]) && values[0] <= values[1];
  } else if ((name == "normal" || name == "lognormal") && (n == 2 || n == 4)) {
    kind_ = name == "normal" ? Kind::normal : Kind::lognormal;
    good = values[0] >= 1 && values[0] <= double(kLongest) && values[1] >= 0;
    if (n == 4) {
      good = good && is_length(values[2]) && is_length(values[3]) && values[2] <= values[3];
      least_ = good ? std::int64_t(values[2]) : 1;
      most_ = good ? std::int64_t(values[3]) : 1;
    }
  }
  OSTRO_REQUIRE(good, flag, " is \"", spec,
                "\"; it must be a number of tokens, uniform:LEAST,MOST, normal:MEAN,STD or "
                "lognormal:MEDIAN,SIGMA (the last two also with ,LEAST,MOST)");
  first_ = values[0];
  second_ = n > 1 ? values[1] : 0;
}

std::int64_t LengthDistribution::draw(Random& random) const {
  double length = first_;
  switch (kind_) {
    case Kind::fixed:
      break;
    case Kind::uniform:
      return std::uniform_int_distribution(std::int64_t(first_), std::int64_t(second_))(random);
    case Kind::normal:
      length += second_ * std::normal_distribution<>()(random);
      break;
    case Kind::lognormal:
      length *= std::exp(second_ * std::normal_distribution<>()(random));
      break;
  }
  return std::int64_t(std::clamp(std::round(length), double(least_), double(most_)));
}

}  // namespace ostro::loadgen
