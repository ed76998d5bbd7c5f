#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/error.h"

namespace ostro::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Logits of the probabilities 0.4, 0.05, 0.3, 0.05, 0.2 (tokens 0 to 4), shifted by a constant.
const std::vector<double> kProbabilities = {0.4, 0.05, 0.3, 0.05, 0.2};

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(float(std::log(p)) + 3);
  return logits;
}

Sampling sampling(float temperature, std::int32_t top_k = 0, float top_p = 0, float min_p = 0) {
  return {.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p, .seed = 5};
}

std::map<std::int32_t, int> draw(const std::vector<float>& logits, Sampling s, int draws) {
  Sampler sampler;
  std::map<std::int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.choose(logits, s, i).token];
  return counts;
}

std::set<std::int32_t> support(const Sampling& s) {
  std::set<std::int32_t> tokens;
  for (const auto& [token, n] : draw(logits_of(kProbabilities), s, 2000)) tokens.insert(token);
  return tokens;
}

// Pearson's chi-square of counts against probabilities (those of the tokens that may come).
double chi_square(const std::map<std::int32_t, int>& counts, std::map<std::int32_t, double> p) {
  double total = 0, draws = 0, sum = 0;
  for (const auto& [token, x] : p) total += x;
  for (const auto& [token, n] : counts) {
    EXPECT_TRUE(p.count(token)) << "token " << token << " was drawn";
    draws += n;
  }
  for (const auto& [token, x] : p) {
    const double want = x / total * draws;
    const auto found = counts.find(token);
    const double got = found == counts.end() ? 0 : found->second;
    sum += (got - want) * (got - want) / want;
  }
  return sum;
}

// The value that chi-square with so many degrees of freedom exceeds once in 100 000 times.
double bound(std::size_t outcomes) {
  const double values[] = {0, 19.51, 23.03, 25.90, 28.47};
  return values[outcomes - 1];
}

using Set = std::set<std::int32_t>;

TEST(Argmax, TakesTheLowestIdAmongEquals) {
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 2, 3, 3}), 1);
  EXPECT_EQ(argmax(std::vector<float>{-1, -1}), 0);
  EXPECT_EQ(argmax(std::vector<float>{0.f, -0.f}), 0);
  EXPECT_EQ(argmax(std::vector<float>{-0.f, 0.f}), 0);
}

TEST(Argmax, NeverTakesNan) {
  EXPECT_EQ(argmax(std::vector<float>{kNan, -5, kNan, -4, kNan}), 3);
  EXPECT_EQ(argmax(std::vector<float>{-kInf, kNan, -7}), 2);
  for (float bad : {kNan, -kInf, kInf})
    EXPECT_THROW(argmax(std::vector<float>{bad, bad}), InternalError) << bad;
}

TEST(LogProb, IsTheLogOfTheSoftmax) {
  const std::vector<float> logits = logits_of(kProbabilities);
  for (std::size_t i = 0; i < logits.size(); ++i)
    EXPECT_NEAR(log_prob(logits, std::int32_t(i)), std::log(kProbabilities[i]), 3e-7) << i;
  EXPECT_FLOAT_EQ(log_prob(std::vector<float>{1000, 1000}, 0), float(-std::log(2)));
  EXPECT_FLOAT_EQ(log_prob(std::vector<float>{-1000, 0}, 0), -1000);
  EXPECT_EQ(log_prob(std::vector<float>{-kInf, 0}, 0), -kInf);
  EXPECT_FLOAT_EQ(log_prob(std::vector<float>{kNan, 1, 1}, 2), float(-std::log(2)));
}

TEST(Sampler, IsGreedyAtTemperatureZeroAndTopKOne) {
  const std::vector<float> logits = {0, 2, 1, 2};
  for (const Sampling& s :
       {sampling(0), sampling(0, 3, 0.9f), sampling(1, 1), sampling(5, 1, 0.5f)})
    for (int step = 0; step < 50; ++step) {
      const Choice c = Sampler().choose(logits, s, step);
      EXPECT_EQ(c.token, 1);
      EXPECT_EQ(c.log_prob, log_prob(logits, 1));
    }
}

TEST(Sampler, LogProbIsBeforeTemperatureAndTruncation) {
  const std::vector<float> logits = logits_of(kProbabilities);
  for (int step = 0; step < 50; ++step) {
    const Choice c = Sampler().choose(logits, sampling(0.3f, 3, 0.8f), step);
    EXPECT_NEAR(c.log_prob, std::log(kProbabilities[std::size_t(c.token)]), 3e-7);
  }
}

TEST(Sampler, TopKKeepsTheMostLikely) {
  EXPECT_EQ(support(sampling(1, 2)), (Set{0, 2}));
  EXPECT_EQ(support(sampling(1, 3)), (Set{0, 2, 4}));
  EXPECT_EQ(support(sampling(1, 4)), (Set{0, 1, 2, 4}));  // the lower id of two equals
  EXPECT_EQ(support(sampling(1, 5)), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(sampling(1, 100)), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(sampling(1, 0)), (Set{0, 1, 2, 3, 4}));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  EXPECT_EQ(support(sampling(1, 0, 0.39f)), (Set{0}));
  EXPECT_EQ(support(sampling(1, 0, 0.41f)), (Set{0, 2}));
  EXPECT_EQ(support(sampling(1, 0, 0.69f)), (Set{0, 2}));
  EXPECT_EQ(support(sampling(1, 0, 0.71f)), (Set{0, 2, 4}));
  EXPECT_EQ(support(sampling(1, 0, 0.92f)), (Set{0, 1, 2, 4}));
  EXPECT_EQ(support(sampling(1, 0, 1)), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(sampling(1, 0, 0)), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(sampling(1, 0, 1e-6f)), (Set{0}));
  // Of what top-k left: 0.4 of 0.7 is 0.57.
  EXPECT_EQ(support(sampling(1, 2, 0.55f)), (Set{0}));
  EXPECT_EQ(support(sampling(1, 2, 0.6f)), (Set{0, 2}));
}

TEST(Sampler, MinPKeepsThoseNearTheBest) {
  EXPECT_EQ(support(sampling(1, 0, 0, 0.76f)), (Set{0}));
  EXPECT_EQ(support(sampling(1, 0, 0, 0.74f)), (Set{0, 2}));
  EXPECT_EQ(support(sampling(1, 0, 0, 0.49f)), (Set{0, 2, 4}));
  EXPECT_EQ(support(sampling(1, 0, 0, 0.12f)), (Set{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(sampling(1, 0, 0, 1)), (Set{0}));
  // At temperature 2 the third has sqrt(0.5) = 0.71 of the best one's probability.
  EXPECT_EQ(support(sampling(2, 0, 0, 0.7f)), (Set{0, 2, 4}));
  EXPECT_EQ(support(sampling(2, 0, 0, 0.72f)), (Set{0, 2}));
}

TEST(Sampler, DrawsByTheProbabilities) {
  const std::vector<float> logits = logits_of(kProbabilities);
  const auto& p = kProbabilities;
  constexpr int kDraws = 20000;
  for (std::uint64_t seed : {0u, 1u, 99u}) {
    Sampling s = sampling(1);
    s.seed = seed;
    EXPECT_LT(chi_square(draw(logits, s, kDraws),
                         {{0, p[0]}, {1, p[1]}, {2, p[2]}, {3, p[3]}, {4, p[4]}}),
              bound(5))
        << "seed " << seed;
  }
  EXPECT_LT(chi_square(draw(logits, sampling(1, 3), kDraws), {{0, .4}, {2, .3}, {4, .2}}),
            bound(3));
  EXPECT_LT(chi_square(draw(logits, sampling(1, 0, 0.6f), kDraws), {{0, .4}, {2, .3}}), bound(2));
  std::map<std::int32_t, double> hot, cold;
  for (std::int32_t i = 0; i < 5; ++i) {
    hot[i] = std::pow(p[std::size_t(i)], 1 / 2.0);
    cold[i] = std::pow(p[std::size_t(i)], 1 / 0.5);
  }
  EXPECT_LT(chi_square(draw(logits, sampling(2), kDraws), hot), bound(5));
  EXPECT_LT(chi_square(draw(logits, sampling(0.5f), kDraws), cold), bound(5));
}

// The first tokens of many requests of different seeds are as random as the tokens of one.
TEST(Sampler, DrawsByTheProbabilitiesOverSeeds) {
  const std::vector<float> logits = logits_of(kProbabilities);
  Sampler sampler;
  std::map<std::int32_t, int> counts;
  Sampling s = sampling(1);
  for (s.seed = 0; s.seed < 20000; ++s.seed) ++counts[sampler.choose(logits, s, 0).token];
  EXPECT_LT(chi_square(counts, {{0, .4}, {1, .05}, {2, .3}, {3, .05}, {4, .2}}), bound(5));
}

TEST(Sampler, TheSeedAndTheStepDecide) {
  const std::vector<float> logits(50, 0.f);
  const auto tokens_of = [&](std::uint64_t seed, Sampler& sampler) {
    Sampling s = sampling(1);
    s.seed = seed;
    std::vector<std::int32_t> tokens;
    for (int step = 0; step < 20; ++step) tokens.push_back(sampler.choose(logits, s, step).token);
    return tokens;
  };
  Sampler fresh, used;
  draw(logits, sampling(1, 7), 10);
  used.choose(std::vector<float>(1000, 1.f), sampling(1), 3);
  EXPECT_EQ(tokens_of(1, fresh), tokens_of(1, used));
  EXPECT_NE(tokens_of(1, fresh), tokens_of(2, fresh));
  const auto row = tokens_of(1, fresh);
  EXPECT_GT((Set(row.begin(), row.end()).size()), 10u);
}

TEST(Sampler, NeverChoosesNan) {
  const std::vector<float> logits = {kNan, 1, kNan, 2, kNan, 1.5f, kNan};
  for (const Sampling& s : {sampling(1), sampling(1, 2), sampling(1, 6, 0.9f, 0.1f)})
    for (const auto& [token, n] : draw(logits, s, 500)) EXPECT_TRUE(token % 2) << token;
}

TEST(Sampler, NeverChoosesWhatHasNoProbability) {
  const std::vector<float> logits = {-kInf, 1, -kInf, 1};
  for (const auto& [token, n] : draw(logits, sampling(100), 500)) EXPECT_TRUE(token % 2) << token;
}

TEST(Sampler, ExtremeTemperatures) {
  const std::vector<float> logits = {1, 30, -5, 29.99f};
  for (float t : {1e-3f, 1e-30f, 1e-45f}) {
    const auto counts = draw(logits, sampling(t), 200);
    ASSERT_EQ(counts.size(), 1u) << t;
    EXPECT_EQ(counts.begin()->first, 1) << t;
  }
  EXPECT_EQ(draw(logits, sampling(1e30f), 500).size(), 4u);
}

TEST(Sampling, RefusesValuesOutOfRange) {
  const auto refusal = [](Sampling s) {
    try {
      check(s);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal(Sampling{}), "");
  EXPECT_EQ(refusal(sampling(-1)), "temperature is -1; it must be 0 or more");
  EXPECT_EQ(refusal(sampling(kNan)), "temperature is nan; it must be 0 or more");
  EXPECT_EQ(refusal(sampling(kInf)), "temperature is inf; it must be 0 or more");
  EXPECT_EQ(refusal(sampling(1, -2)), "top_k is -2; it must be 0 (all) or more");
  EXPECT_EQ(refusal(sampling(1, 0, 2)), "top_p is 2; it must be in [0, 1]");
  EXPECT_EQ(refusal(sampling(1, 0, kNan)), "top_p is nan; it must be in [0, 1]");
  EXPECT_EQ(refusal(sampling(1, 0, 0, -0.5f)), "min_p is -0.5; it must be in [0, 1]");
}

}  // namespace
}  // namespace ostro::engine
