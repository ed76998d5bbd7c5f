#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace ostro::engine {
namespace {

// A uniform number in [0, 1) from a seed and a counter: the finaliser of SplitMix64 (Steele, Lea
// and Flood 2014, doi:10.1145/2660193.2660195) over both.
double uniform(std::uint64_t seed, std::uint64_t counter) {
  const auto mix = [](std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  const std::uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
  return double(bits >> 11) * 0x1p-53;
}

}  // namespace

void check(const Sampling& s) {
  OSTRO_REQUIRE(std::isfinite(s.temperature) && s.temperature >= 0, "temperature is ",
                s.temperature, "; it must be 0 or more");
  OSTRO_REQUIRE(s.top_k >= 0, "top_k is ", s.top_k, "; it must be 0 (all) or more");
  OSTRO_REQUIRE(s.top_p >= 0 && s.top_p <= 1, "top_p is ", s.top_p, "; it must be in [0, 1]");
  OSTRO_REQUIRE(s.min_p >= 0 && s.min_p <= 1, "min_p is ", s.min_p, "; it must be in [0, 1]");
}

float log_prob(std::span<const float> logits, std::int32_t token) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(double(x) - most);
  return float(double(logits[std::size_t(token)]) - most - std::log(sum));
}

std::int32_t argmax(std::span<const float> logits) {
  std::int32_t best = -1;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (best < 0 ? logits[i] == logits[i] : logits[i] > logits[std::size_t(best)])
      best = std::int32_t(i);
  OSTRO_CHECK(best >= 0 && std::isfinite(logits[std::size_t(best)]), "no finite logit among ",
              logits.size());
  return best;
}

Choice Sampler::choose(std::span<const float> logits, const Sampling& s, std::int64_t step) {
  const std::int32_t best = argmax(logits);
  if (s.temperature == 0 || s.top_k == 1) return {best, log_prob(logits, best)};

  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i)
    candidates_.push_back({logits[i] / s.temperature, std::int32_t(i)});
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const std::size_t keep = s.top_k == 0 ? candidates_.size()
                                        : std::min(std::size_t(s.top_k), candidates_.size());
  const bool all = keep == candidates_.size();
  if (!all) {
    std::nth_element(candidates_.begin(), candidates_.begin() + std::ptrdiff_t(keep),
                     candidates_.end(), more_likely);
    candidates_.resize(keep);
  }
  std::sort(candidates_.begin(), candidates_.end(), more_likely);

  weights_.clear();
  double sum = 0;
  for (const Candidate& c : candidates_) {
    weights_.push_back(std::exp(double(c.logit) - candidates_[0].logit));
    sum += weights_.back();
  }
  std::size_t kept = weights_.size();
  if (s.top_p > 0 && s.top_p < 1) {
    double reached = 0;
    for (kept = 0; kept < weights_.size() && reached < s.top_p * sum; ++kept)
      reached += weights_[kept];
  }
  // weights_[0] is 1, so a weight is its probability over the best one.
  while (kept > 1 && weights_[kept - 1] < s.min_p) --kept;

  double total = 0;
  for (std::size_t i = 0; i < kept; ++i) total += weights_[i];
  double left = uniform(s.seed, std::uint64_t(step)) * total;
  std::size_t chosen = 0;
  while (chosen + 1 < kept && left >= weights_[chosen]) left -= weights_[chosen++];
  const std::int32_t token = candidates_[chosen].token;
  return {token, log_prob(logits, token)};
}

}  // namespace ostro::engine
