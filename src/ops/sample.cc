#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/contract.h"

namespace ostro::ops {
namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
std::uint64_t scramble(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// log(sum of exp(x - most)).
double log_sum(std::span<const float> logits, float most) {
  double sum = 0;
  for (float x : logits)
    if (x == x) sum += std::exp(double(x) - most);
  return std::log(sum);
}

// The largest logit, whatever it is.
float largest(std::span<const float> logits) {
  // In chains that do not wait for each other. A NaN compares as not larger.
  constexpr std::size_t kChains = 16;
  float most[kChains];
  std::fill_n(most, kChains, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kChains <= logits.size(); i += kChains)
    for (std::size_t c = 0; c < kChains; ++c)
      most[c] = logits[i + c] > most[c] ? logits[i + c] : most[c];
  for (; i < logits.size(); ++i) most[0] = logits[i] > most[0] ? logits[i] : most[0];
  return *std::max_element(most, most + kChains);
}

}  // namespace

void check(const Sample& op) {
  const Contract contract("Sample", op.logits.device);
  constexpr std::int64_t kMostVocab = 1 << 24;
  const std::int64_t rows = op.settings.rows, most = op.best.cols;
  contract.shape("logits", op.logits, op.logits.rows, op.logits.cols);
  contract.dtype("logits", op.logits, DType::f32);
  contract.shape("settings", op.settings, rows, kSettingWords);
  contract.dtype("settings", op.settings, DType::i32);
  contract.shape("tokens", op.tokens, rows, 1);
  contract.dtype("tokens", op.tokens, DType::i32);
  contract.shape("log_probs", op.log_probs, rows, 1);
  contract.dtype("log_probs", op.log_probs, DType::f32);
  contract.shape("best", op.best, rows, most);
  contract.dtype("best", op.best, DType::i32);
  contract.shape("best_log_probs", op.best_log_probs, rows, most);
  contract.dtype("best_log_probs", op.best_log_probs, DType::f32);
  OSTRO_REQUIRE(op.logits.cols <= kMostVocab, "Sample: logits is ", describe(op.logits),
                ", wanted at most ", kMostVocab, " columns");
}

void reference(const Sample& op) {
  check(op);
  HostSampler sampler;
  for (std::int64_t r = 0; r < op.settings.rows; ++r) sampler.run(op, r);
}

SampleOutputs cut_outputs(const View& words) {
  const std::int64_t most = (words.cols - 2) / 2;
  View floats = words;
  floats.dtype = DType::f32;
  return {.tokens = words.cols_of({0, 1}),
          .log_probs = floats.cols_of({1, 2}),
          .best = words.cols_of({2, 2 + most}),
          .best_log_probs = floats.cols_of({2 + most, 2 + 2 * most})};
}

float log_prob(std::span<const float> logits, std::int32_t token) {
  const float most = largest(logits);
  return float(double(logits[std::size_t(token)]) - most - log_sum(logits, most));
}

std::int32_t most_likely(std::span<const float> logits) {
  const float most = largest(logits);
  if (!std::isfinite(most)) return -1;
  return std::int32_t(std::ranges::find(logits, most) - logits.begin());
}

std::vector<Likely> most_likely(std::span<const float> logits, std::int32_t k) {
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
  std::vector<Likely> best;
  for (std::size_t i = 0; i < keep; ++i)
    best.push_back({order[i], float(double(logits[std::size_t(order[i])]) - most - norm)});
  return best;
}

double uniform(std::uint64_t seed, std::uint64_t counter) {
  const std::uint64_t bits =
      scramble(scramble(seed + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
  return double(bits >> 11) * 0x1p-53;
}

std::int32_t HostSampler::token(std::span<const float> logits, const SampleSettings& s) {
  const std::int32_t best = most_likely(logits);
  if (best < 0 || s.temperature == 0 || s.top_k == 1) return best;

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
  double left = uniform(s.seed(), s.step) * total;
  std::size_t chosen = 0;
  while (chosen + 1 < kept && left >= weights_[chosen]) left -= weights_[chosen++];
  return candidates_[chosen].token;
}

void HostSampler::run(const Sample& op, std::int64_t r) {
  SampleSettings s;
  std::memcpy(static_cast<void*>(&s), op.settings.row<const std::int32_t>(r), sizeof(s));
  OSTRO_REQUIRE(s.row < op.logits.rows, "Sample: settings[", r, "] has row ", s.row, ", logits is ",
                describe(op.logits));
  std::int32_t& chosen = *op.tokens.row<std::int32_t>(r);
  float& chosen_log_prob = *op.log_probs.row<float>(r);
  chosen = -1;
  chosen_log_prob = 0;
  const std::int64_t most = op.best.cols;
  if (most > 0) {
    std::fill_n(op.best.row<std::int32_t>(r), most, -1);
    std::fill_n(op.best_log_probs.row<float>(r), most, 0.0f);
  }
  if (s.row < 0) return;
  const std::span<const float> logits(op.logits.row<const float>(s.row),
                                      std::size_t(op.logits.cols));
  chosen = token(logits, s);
  if (chosen < 0) return;
  if (s.log_prob) chosen_log_prob = log_prob(logits, chosen);
  if (s.alternatives == 0 || most == 0) return;
  const auto best = most_likely(logits, std::int32_t(std::min<std::int64_t>(s.alternatives, most)));
  for (std::size_t i = 0; i < best.size(); ++i) {
    op.best.row<std::int32_t>(r)[i] = best[i].token;
    op.best_log_probs.row<float>(r)[i] = best[i].log_prob;
  }
}

}  // namespace ostro::ops
