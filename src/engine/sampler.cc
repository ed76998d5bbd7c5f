#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace ostro::engine {
namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A uniform number in [0, 1) from a seed and a counter.
double uniform(std::uint64_t seed, std::uint64_t counter) {
  const std::uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
  return double(bits >> 11) * 0x1p-53;
}

// log(sum of exp(x - most)).
double log_sum(std::span<const float> logits, float most) {
  double sum = 0;
  for (float x : logits)
    if (x == x) sum += std::exp(double(x) - most);
  return std::log(sum);
}

void check_ids(std::span<const std::int32_t> ids, const char* what, std::int64_t vocab) {
  for (std::int32_t id : ids)
    OSTRO_REQUIRE(id >= 0 && id < vocab, what, " has token ", id, "; the vocabulary has ids 0 to ",
                  vocab - 1);
}

}  // namespace

void check(const Sampling& s) {
  OSTRO_REQUIRE(std::isfinite(s.temperature) && s.temperature >= 0, "temperature is ",
                s.temperature, "; it must be 0 or more");
  OSTRO_REQUIRE(s.top_k >= 0, "top_k is ", s.top_k, "; it must be 0 (all) or more");
  OSTRO_REQUIRE(s.top_p >= 0 && s.top_p <= 1, "top_p is ", s.top_p, "; it must be in [0, 1]");
  OSTRO_REQUIRE(s.min_p >= 0 && s.min_p <= 1, "min_p is ", s.min_p, "; it must be in [0, 1]");
  OSTRO_REQUIRE(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0,
                "repetition_penalty is ", s.repetition_penalty, "; it must be over 0");
  OSTRO_REQUIRE(std::isfinite(s.presence_penalty), "presence_penalty is ", s.presence_penalty);
  OSTRO_REQUIRE(std::isfinite(s.frequency_penalty), "frequency_penalty is ", s.frequency_penalty);
  OSTRO_REQUIRE(s.no_repeat_ngram_size >= 0, "no_repeat_ngram_size is ", s.no_repeat_ngram_size,
                "; it must be 0 (off) or more");
  OSTRO_REQUIRE(s.min_tokens >= 0, "min_tokens is ", s.min_tokens, "; it must be 0 or more");
  for (const auto& [token, bias] : s.logit_bias)
    OSTRO_REQUIRE(std::isfinite(bias), "the logit_bias of token ", token, " is ", bias);
  for (const auto& word : s.bad_words) OSTRO_REQUIRE(!word.empty(), "a bad word has no tokens");
}

void check(const Sampling& s, std::int64_t vocab) {
  check(s);
  for (const auto& entry : s.logit_bias) check_ids({&entry.first, 1}, "logit_bias", vocab);
  for (const auto& word : s.bad_words) check_ids(word, "a bad word", vocab);
}

float log_prob(std::span<const float> logits, std::int32_t token) {
  const float most = logits[std::size_t(argmax(logits))];
  return float(double(logits[std::size_t(token)]) - most - log_sum(logits, most));
}

std::vector<TokenLogProb> most_likely(std::span<const float> logits, std::int32_t k) {
  std::vector<std::int32_t> order;
  order.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (logits[i] == logits[i]) order.push_back(std::int32_t(i));
  const auto keep = std::min(order.size(), std::size_t(std::max(k, 0)));
  if (keep == 0) return {};
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(keep), order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      const float x = logits[std::size_t(a)], y = logits[std::size_t(b)];
                      return x != y ? x > y : a < b;
                    });
  const float most = logits[std::size_t(order[0])];
  const double norm = log_sum(logits, most);
  std::vector<TokenLogProb> best;
  for (std::size_t i = 0; i < keep; ++i)
    best.push_back({order[i], float(double(logits[std::size_t(order[i])]) - most - norm)});
  return best;
}

std::uint64_t sequence_seed(std::uint64_t seed, std::int32_t i) {
  return i == 0 ? seed : mix(mix(seed) + std::uint64_t(i));
}

std::int32_t argmax(std::span<const float> logits) {
  // The largest value first, in chains that do not wait for each other, then where it stands. A NaN
  // compares as not larger.
  constexpr std::size_t kChains = 16;
  float largest[kChains];
  std::fill_n(largest, kChains, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kChains <= logits.size(); i += kChains)
    for (std::size_t c = 0; c < kChains; ++c)
      largest[c] = logits[i + c] > largest[c] ? logits[i + c] : largest[c];
  for (; i < logits.size(); ++i) largest[0] = logits[i] > largest[0] ? logits[i] : largest[0];
  const float best = *std::max_element(largest, largest + kChains);
  OSTRO_CHECK(std::isfinite(best), "no finite logit among ", logits.size());
  return std::int32_t(std::ranges::find(logits, best) - logits.begin());
}

Choice Sampler::choose(std::span<const float> logits, const Sampling& s, std::int64_t step) {
  const std::int32_t chosen = token(logits, s, s.seed, step);
  return {chosen, log_prob(logits, chosen)};
}

std::int32_t Sampler::token(std::span<const float> logits, const Sampling& s, std::uint64_t seed,
                            std::int64_t step) {
  const std::int32_t best = argmax(logits);
  if (s.temperature == 0 || s.top_k == 1) return best;

  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i)
    // Neither NaN nor what a rule has forbidden.
    if (logits[i] > -std::numeric_limits<float>::infinity())
      candidates_.push_back({logits[i], std::int32_t(i)});
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const std::size_t keep =
      s.top_k == 0 ? candidates_.size() : std::min(std::size_t(s.top_k), candidates_.size());
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
    // In this order no temperature, however small, makes the best one anything but 1.
    weights_.push_back(std::exp((double(c.logit) - candidates_[0].logit) / s.temperature));
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
  double left = uniform(seed, std::uint64_t(step)) * total;
  std::size_t chosen = 0;
  while (chosen + 1 < kept && left >= weights_[chosen]) left -= weights_[chosen++];
  return candidates_[chosen].token;
}

}  // namespace ostro::engine
