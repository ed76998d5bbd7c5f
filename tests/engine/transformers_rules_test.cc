// The distributions that transformers' logits processors leave (tests/golden/sampling.json, by
// tools/make_goldens.py): every draw takes the token that they give to the same random number.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/logit_rules.h"
#include "engine/sampler.h"
#include "ops/sample.h"

namespace ostro::engine {
namespace {

using nlohmann::json;

constexpr int kDraws = 1000;
// transformers' probabilities are quotients of f32 sums over 24 tokens, as are ours before the
// cuts: 24 * 2^-24 each, and as much again for the logits of up to 32 at a temperature of 0.25.
constexpr double kRounding = 2e-5;

Sampling sampling_of(const json& rules) {
  Sampling s{.temperature = rules.value("temperature", 1.f),
             .top_k = rules.value("top_k", 0),
             .top_p = rules.value("top_p", 1.f),
             .min_p = rules.value("min_p", 0.f),
             .seed = 20261128};
  s.repetition_penalty = rules.value("repetition_penalty", 1.f);
  s.no_repeat_ngram_size = rules.value("no_repeat_ngram_size", 0);
  s.min_tokens = rules.value("min_new_tokens", 0);
  s.bad_words = rules.value("bad_words_ids", s.bad_words);
  for (const json& bias : rules.value("sequence_bias", json::array()))
    s.logit_bias.emplace_back(bias[0][0].get<std::int32_t>(), bias[1].get<float>());
  return s;
}

// The likeliest first. Cases have no equals.
std::vector<std::size_t> by_probability(const std::vector<double>& p) {
  std::vector<std::size_t> order;
  for (std::size_t t = 0; t < p.size(); ++t)
    if (p[t] > 0) order.push_back(t);
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  return order;
}

// The token that u in [0, 1) falls on; -1: u is too near to the end of one to tell.
std::int32_t token_at(double u, const std::vector<double>& p,
                      const std::vector<std::size_t>& order) {
  double sum = 0;
  for (std::size_t t : order) {
    sum += p[t];
    if (std::abs(u - sum) < kRounding) return -1;
    if (u < sum) return std::int32_t(t);
  }
  return -1;
}

TEST(TransformersRules, EveryDrawIsTheirs) {
  const json golden = json::parse(std::ifstream(OSTRO_SOURCE_DIR "/tests/golden/sampling.json"));
  const json& cases = golden.at("cases");
  ASSERT_GE(cases.size(), 100u);
  LogitRules rules;
  Sampler sampler;
  std::int64_t told = 0;
  for (const json& c : cases) {
    const Sampling s = sampling_of(c.at("rules"));
    const auto tokens = c.at("tokens").get<std::vector<std::int32_t>>();
    const auto ends = c.at("end_ids").get<std::vector<std::int32_t>>();
    const auto p = c.at("probabilities").get<std::vector<double>>();
    const auto order = by_probability(p);
    const auto logits = c.at("logits").get<std::vector<float>>();
    const std::span<const float> x =
        rules.apply(logits, s, ends, tokens, c.at("prompt_tokens").get<std::size_t>());
    for (int step = 0; step < kDraws; ++step) {
      const std::int32_t want = token_at(ops::uniform(s.seed, std::uint64_t(step)), p, order);
      if (want < 0) continue;
      ++told;
      ASSERT_EQ(sampler.token(x, s, s.seed, step), want) << c.dump() << " step " << step;
    }
  }
  EXPECT_GT(told, std::int64_t(cases.size()) * kDraws * 99 / 100);
}

}  // namespace
}  // namespace ostro::engine
