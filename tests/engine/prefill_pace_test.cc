#include "engine/prefill_pace.h"

#include <gtest/gtest.h>

namespace ostro::engine {
namespace {

// The chunk after steps of a machine that needs `fixed` seconds a step and `each` a token.
std::int64_t settle(PrefillPace& pace, double fixed, double each, int steps = 40) {
  for (int i = 0; i < steps; ++i) pace.observe(pace.tokens(), fixed + each * double(pace.tokens()));
  return pace.tokens();
}

TEST(PrefillPace, SettlesWhereAStepTakesTheStall) {
  PrefillPace pace(0.3);
  EXPECT_EQ(pace.tokens(), PrefillPace::kFirstTokens);
  EXPECT_NEAR(double(settle(pace, 0, 0.001)), 300, 2);
  EXPECT_NEAR(double(settle(pace, 0.1, 0.001)), 200, 3);  // 0.1 + 200 * 0.001
  EXPECT_NEAR(double(settle(pace, 0.1, 0.0001)), 2000, 30);
}

TEST(PrefillPace, TakesAsLongAgainAsStepsThatAreSlowAnyway) {
  PrefillPace pace(0.3);
  for (int i = 0; i < 20; ++i) pace.observe(0, 1.0);
  EXPECT_NEAR(double(settle(pace, 1, 0.01)), 100, 2);  // 2 s: 1 + 100 * 0.01
  EXPECT_EQ(settle(pace, 3, 0.01), PrefillPace::kLeastTokens);
}

TEST(PrefillPace, IgnoresChunksThatTellNothing) {
  PrefillPace pace(0.3);
  pace.observe(PrefillPace::kLeastTokens - 1, 10);
  EXPECT_EQ(pace.tokens(), PrefillPace::kFirstTokens);
}

TEST(PrefillPace, WithoutALimit) {
  PrefillPace pace(0);
  pace.observe(100, 10);
  EXPECT_EQ(pace.tokens(), PrefillPace::kNoLimit);
}

}  // namespace
}  // namespace ostro::engine
