#include "sched/future_peak.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/math.h"

namespace ostro::sched {
namespace {

TEST(FuturePeak, OfOneIsItsEnd) {
  EXPECT_EQ(future_peak({}, 4), 0);
  EXPECT_EQ(future_peak({{.positions = 5, .left = 0}}, 4), 2);
  EXPECT_EQ(future_peak({{.positions = 5, .left = 3}}, 4), 2);
  EXPECT_EQ(future_peak({{.positions = 5, .left = 4}}, 4), 3);
  EXPECT_EQ(future_peak({{.positions = 5, .left = 4, .shared = 1}}, 4), 2);
}

TEST(FuturePeak, OneThatEndsMakesRoomForOthers) {
  // After 2 steps 3 + 1 blocks; then the first is gone, and the second grows to 4 alone.
  EXPECT_EQ(future_peak({{.positions = 10, .left = 2}, {.positions = 2, .left = 14}}, 4), 4);
  // Were they to end together, they would have 4 + 4.
  EXPECT_EQ(future_peak({{.positions = 10, .left = 6}, {.positions = 10, .left = 6}}, 4), 8);
}

TEST(FuturePeak, IsTheMostThatStepAfterStepFinds) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  for (int round = 0; round < 4000; ++round) {
    const auto block_tokens = std::int64_t(1 + rng() % 9);
    std::vector<Growing> sequences(rng() % 12);
    for (Growing& g : sequences) {
      g.positions = std::int64_t(rng() % 40);
      g.left = std::int64_t(rng() % 40);
      g.shared = std::int64_t(rng()) % (g.positions / block_tokens + 1);
    }
    std::int64_t most = 0;
    for (std::int64_t t = 0; t < 40; ++t) {
      std::int64_t now = 0;
      for (const Growing& g : sequences)
        if (g.left >= t) now += ceil_div(g.positions + t, block_tokens) - g.shared;
      most = std::max(most, now);
    }
    ASSERT_EQ(future_peak(sequences, block_tokens), most) << "round " << round;
  }
}

}  // namespace
}  // namespace ostro::sched
