#include "eval/divergence.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ostro::eval {
namespace {

// Logits of the probabilities, moved by a constant, which changes nothing.
std::vector<float> logits_of(const std::vector<double>& probabilities, double constant) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(float(std::log(p) + constant));
  return logits;
}

// 1/2 ln(1/2 / 1/4) + 1/4 ln(1/4 / 1/2) + 1/4 ln 1 = 1/4 ln 2.
TEST(Divergence, ByHand) {
  const std::vector<float> p = logits_of({0.5, 0.25, 0.25}, 3),
                           q = logits_of({0.25, 0.5, 0.25}, -7);
  EXPECT_NEAR(divergence(p, q), 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(divergence(p, p), 0);
  // 3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2), and the other way: it is not symmetric.
  const std::vector<float> r = logits_of({0.75, 0.25}, 0), s = logits_of({0.5, 0.5}, 0);
  EXPECT_NEAR(divergence(r, s), 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-6);
  EXPECT_NEAR(divergence(s, r), 0.5 * std::log(0.5 / 0.75) + 0.5 * std::log(2.0), 1e-6);
}

TEST(Divergence, LargeLogitsDoNotOverflow) {
  const std::vector<float> p = {1000, 0}, q = {0, 1000};
  EXPECT_NEAR(divergence(p, q), 1000, 1e-9);
}

TEST(Divergences, MeanLargestAndAgreement) {
  const std::vector<float> p = logits_of({0.5, 0.25, 0.25}, 0), q = logits_of({0.25, 0.5, 0.25}, 0);
  Divergences all;
  all.add(p, q);  // the likeliest differ
  all.add(p, p);
  all.add(q, q);
  all.add(logits_of({0.4, 0.4, 0.2}, 0), p);  // among equals the lower id
  EXPECT_EQ(all.tokens(), 4);
  EXPECT_DOUBLE_EQ(all.top1_agreement(), 0.75);
  EXPECT_NEAR(all.max(), 0.25 * std::log(2.0), 1e-6);
  const double last = 0.4 * std::log(0.4 / 0.5) + 0.4 * std::log(0.4 / 0.25) + 0.2 * std::log(0.8);
  EXPECT_NEAR(all.mean(), (0.25 * std::log(2.0) + last) / 4, 1e-6);
}

}  // namespace
}  // namespace ostro::eval
