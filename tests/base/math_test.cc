#include "base/math.h"

#include <gtest/gtest.h>

namespace ostro {
namespace {

static_assert(ceil_div(0, 4) == 0 && ceil_div(1, 4) == 1 && ceil_div(4, 4) == 1 &&
              ceil_div(5, 4) == 2);
static_assert(round_up(0, 64) == 0 && round_up(1, 64) == 64 && round_up(64, 64) == 64 &&
              round_up(65, 64) == 128);

TEST(Range, IsHalfOpen) {
  const Range r{2, 5};
  EXPECT_EQ(r.size(), 3);
  EXPECT_FALSE(r.contains(1));
  EXPECT_TRUE(r.contains(2));
  EXPECT_TRUE(r.contains(4));
  EXPECT_FALSE(r.contains(5));
  EXPECT_FALSE((Range{3, 3}).contains(3));
}

TEST(PartOf, CutsIntoNearlyEqualNeighbours) {
  for (std::int64_t n : {0, 1, 7, 8, 64, 32000, 32003})
    for (std::int64_t parts : {1, 2, 3, 8, 64}) {
      std::int64_t next = 0;
      for (std::int64_t i = 0; i < parts; ++i) {
        const Range part = part_of(n, i, parts);
        EXPECT_EQ(part.begin, next);
        EXPECT_GE(part.size(), n / parts);
        EXPECT_LE(part.size(), ceil_div(n, parts));
        next = part.end;
      }
      EXPECT_EQ(next, n);
    }
}

}  // namespace
}  // namespace ostro
