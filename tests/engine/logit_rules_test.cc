#include "engine/logit_rules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace ostro::engine {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
using Tokens = std::vector<std::int32_t>;

std::vector<float> apply(const Sampling& s, const std::vector<float>& logits, const Tokens& tokens,
                         std::size_t prompt_tokens, const Tokens& end_ids = {}) {
  LogitRules rules;
  // Twice: the workspace must not remember.
  rules.apply(logits, s, end_ids, tokens, prompt_tokens);
  const auto out = rules.apply(logits, s, end_ids, tokens, prompt_tokens);
  return {out.begin(), out.end()};
}

TEST(LogitRules, NothingByDefault) {
  EXPECT_FALSE(has_rules({}));
  EXPECT_TRUE(has_rules({.min_tokens = 1}));
  EXPECT_EQ(apply({}, {1, -2, 3}, {0, 1}, 1), (std::vector<float>{1, -2, 3}));
}

TEST(LogitRules, RepetitionPenaltyOfPromptAndOutputOnceAToken) {
  EXPECT_EQ(apply({.repetition_penalty = 2}, {4, -4, 3, -3}, {0, 0, 1, 1}, 2),
            (std::vector<float>{2, -8, 3, -3}));
}

TEST(LogitRules, PresenceAndFrequencyOfTheOutputAlone) {
  EXPECT_EQ(apply({.presence_penalty = 1, .frequency_penalty = 0.5f}, {4, 4, 4, 4},
                  {3, 3, 0, 1, 1, 1}, 2),
            (std::vector<float>{2.5f, 1.5f, 4, 4}));
}

TEST(LogitRules, NoNgramTwice) {
  const std::vector<float> x{1, 1, 1, 1};
  EXPECT_EQ(apply({.no_repeat_ngram_size = 2}, x, {0, 1, 2, 0}, 2),
            (std::vector<float>{1, kNever, 1, 1}));
  EXPECT_EQ(apply({.no_repeat_ngram_size = 3}, x, {0, 1, 2, 3, 0, 1}, 3),
            (std::vector<float>{1, 1, kNever, 1}));
  EXPECT_EQ(apply({.no_repeat_ngram_size = 1}, x, {0, 2}, 1),
            (std::vector<float>{kNever, 1, kNever, 1}));
  EXPECT_EQ(apply({.no_repeat_ngram_size = 4}, x, {0, 1, 2}, 1), x) << "no 4-gram there yet";
  EXPECT_EQ(apply({.no_repeat_ngram_size = 9}, x, {0}, 1), x);
}

TEST(LogitRules, BadWordsAreSequences) {
  const std::vector<float> x{1, 1, 1, 1};
  const Sampling s{.bad_words = {{3}, {0, 1, 2}}};
  EXPECT_EQ(apply(s, x, {0}, 1), (std::vector<float>{1, 1, 1, kNever}));
  EXPECT_EQ(apply(s, x, {0, 1}, 1), (std::vector<float>{1, 1, kNever, kNever}));
  EXPECT_EQ(apply(s, x, {1, 0}, 1), (std::vector<float>{1, 1, 1, kNever}));
  EXPECT_EQ(apply(s, x, {0}, 1, {3}), x) << "an end id is no bad word";
}

TEST(LogitRules, NoEndBeforeMinTokens) {
  const std::vector<float> x{1, 1, 1};
  EXPECT_EQ(apply({.min_tokens = 2}, x, {0, 1, 1, 1}, 3, {2}), (std::vector<float>{1, 1, kNever}));
  EXPECT_EQ(apply({.min_tokens = 2}, x, {0, 1, 1, 1, 1}, 3, {2}), x);
}

TEST(LogitRules, TheBiasComesBeforeThePenalty) {
  EXPECT_EQ(apply({.repetition_penalty = 2, .logit_bias = {{0, -5}, {1, 2}}}, {4, 2}, {0, 1}, 2),
            (std::vector<float>{-2, 2}));
}

TEST(LogitRules, WhenAllIsForbiddenTheModelDecides) {
  EXPECT_EQ(apply({.no_repeat_ngram_size = 1}, {1, 2}, {0, 1}, 1), (std::vector<float>{1, 2}));
}

// Against the definitions, written without regard to speed.
TEST(LogitRules, RandomSettings) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  LogitRules rules;
  for (int round = 0; round < 3000; ++round) {
    const std::size_t vocab = 3 + rng() % 6;
    std::vector<float> x(vocab);
    for (float& v : x) v = float(int(rng() % 41) - 20) / 4;
    Tokens tokens(1 + rng() % 20);
    for (auto& t : tokens) t = std::int32_t(rng() % vocab);
    const std::size_t prompt = 1 + rng() % tokens.size();
    Sampling s;
    s.repetition_penalty = rng() % 2 ? 1 : 1.5f;
    s.presence_penalty = float(rng() % 3);
    s.frequency_penalty = float(rng() % 3) / 2;
    s.no_repeat_ngram_size = std::int32_t(rng() % 4);
    s.min_tokens = std::int64_t(rng() % 4);
    s.bad_words = {{std::int32_t(rng() % vocab), std::int32_t(rng() % vocab)}};
    s.logit_bias = {{std::int32_t(rng() % vocab), 0.5f}};
    const Tokens end{0};

    std::vector<float> want = x;
    want[std::size_t(s.logit_bias[0].first)] += 0.5f;
    for (std::int32_t t = 0; t < std::int32_t(vocab); ++t) {
      float& v = want[std::size_t(t)];
      if (std::count(tokens.begin(), tokens.end(), t) > 0)
        v = v < 0 ? v * s.repetition_penalty : v / s.repetition_penalty;
      const auto c = std::count(tokens.begin() + std::ptrdiff_t(prompt), tokens.end(), t);
      v -= float(c) * s.frequency_penalty + (c > 0 ? s.presence_penalty : 0);
      Tokens longer = tokens;
      longer.push_back(t);
      const auto n = std::size_t(s.no_repeat_ngram_size);
      if (n > 0 && longer.size() > n) {
        const Tokens gram(longer.end() - std::ptrdiff_t(n), longer.end());
        if (std::search(tokens.begin(), tokens.end(), gram.begin(), gram.end()) != tokens.end())
          v = kNever;
      }
      if (longer.size() >= 2 && Tokens(longer.end() - 2, longer.end()) == s.bad_words[0])
        v = kNever;
      if (t == 0 && std::int64_t(tokens.size() - prompt) < s.min_tokens) v = kNever;
    }
    if (std::all_of(want.begin(), want.end(), [](float v) { return v == kNever; })) want = x;
    const auto got = rules.apply(x, s, end, tokens, prompt);
    for (std::size_t t = 0; t < vocab; ++t) ASSERT_FLOAT_EQ(got[t], want[t]) << t;
  }
}

TEST(StopAtEnd, TheFirstThatTheOutputEndsWith) {
  const std::vector<Tokens> stops{{7, 8}, {8}};
  EXPECT_EQ(stop_at_end(stops, Tokens{6, 7}), -1);
  EXPECT_EQ(stop_at_end(stops, Tokens{7, 8}), 0);
  EXPECT_EQ(stop_at_end(stops, Tokens{8}), 1);
  EXPECT_EQ(stop_at_end({}, Tokens{8}), -1);
}

}  // namespace
}  // namespace ostro::engine
