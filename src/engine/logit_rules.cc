#include "engine/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ostro::engine {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

bool ends_with(std::span<const std::int32_t> tokens, std::span<const std::int32_t> tail) {
  return tail.size() <= tokens.size() && std::ranges::equal(tokens.last(tail.size()), tail);
}

bool any_finite(std::span<const float> x) {
  return std::ranges::any_of(x, [](float value) { return std::isfinite(value); });
}

}  // namespace

bool has_rules(const Sampling& s) {
  return s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0 ||
         s.no_repeat_ngram_size > 0 || !s.logit_bias.empty() || !s.bad_words.empty() ||
         s.min_tokens > 0;
}

// Each token once, however often it occurs.
void LogitRules::penalise(const Sampling& s, std::span<const std::int32_t> tokens,
                          std::size_t prompt_tokens) {
  if (s.repetition_penalty != 1) {
    for (std::int32_t t : tokens) {
      float& x = x_[std::size_t(t)];
      if (counts_[std::size_t(t)]++ == 0)
        x = x < 0 ? x * s.repetition_penalty : x / s.repetition_penalty;
    }
    for (std::int32_t t : tokens) counts_[std::size_t(t)] = 0;
  }
  if (s.presence_penalty == 0 && s.frequency_penalty == 0) return;
  const auto output = tokens.subspan(prompt_tokens);
  for (std::int32_t t : output) ++counts_[std::size_t(t)];
  for (std::int32_t t : output) {
    std::int32_t& count = counts_[std::size_t(t)];
    if (count > 0) x_[std::size_t(t)] -= float(count) * s.frequency_penalty + s.presence_penalty;
    count = 0;
  }
}

std::span<const float> LogitRules::apply(std::span<const float> logits, const Sampling& s,
                                         std::span<const std::int32_t> end_ids,
                                         std::span<const std::int32_t> tokens,
                                         std::size_t prompt_tokens) {
  x_.assign(logits.begin(), logits.end());
  counts_.resize(logits.size(), 0);
  for (const auto& [token, bias] : s.logit_bias) x_[std::size_t(token)] += bias;
  penalise(s, tokens, prompt_tokens);

  if (const auto n = std::size_t(s.no_repeat_ngram_size); n > 0 && tokens.size() + 1 >= n) {
    const auto tail = tokens.last(n - 1);
    for (std::size_t i = 0; i + n <= tokens.size(); ++i)
      if (std::ranges::equal(tokens.subspan(i, n - 1), tail))
        x_[std::size_t(tokens[i + n - 1])] = kNever;
  }
  const auto is_end = [&](std::int32_t t) {
    return std::ranges::find(end_ids, t) != end_ids.end();
  };
  for (const std::vector<std::int32_t>& word : s.bad_words) {
    const std::span<const std::int32_t> before = std::span(word).first(word.size() - 1);
    if (before.empty() ? !is_end(word.back()) : ends_with(tokens, before))
      x_[std::size_t(word.back())] = kNever;
  }
  if (std::int64_t(tokens.size() - prompt_tokens) < s.min_tokens)
    for (std::int32_t t : end_ids) x_[std::size_t(t)] = kNever;

  return any_finite(x_) ? std::span<const float>(x_) : logits;
}

std::span<const float> LogitRules::keep(std::span<const float> ruled, std::span<const float> logits,
                                        std::span<const std::uint32_t> allowed,
                                        std::span<const std::int32_t> ends, bool may_end) {
  kept_.resize(ruled.size());
  const auto keep_of = [&](std::span<const float> from) {
    for (std::size_t i = 0; i < from.size(); ++i)
      kept_[i] = allowed[i / 32] >> (i % 32) & 1 ? from[i] : kNever;
    for (std::int32_t t : ends) kept_[std::size_t(t)] = may_end ? from[std::size_t(t)] : kNever;
  };
  keep_of(ruled);
  if (!any_finite(kept_)) keep_of(logits);
  return kept_;
}

std::ptrdiff_t stop_at_end(std::span<const std::vector<std::int32_t>> stops,
                           std::span<const std::int32_t> output) {
  for (std::size_t i = 0; i < stops.size(); ++i)
    if (ends_with(output, stops[i])) return std::ptrdiff_t(i);
  return -1;
}

}  // namespace ostro::engine
