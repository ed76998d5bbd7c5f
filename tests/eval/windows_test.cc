#include "eval/windows.h"

#include <gtest/gtest.h>

namespace ostro::eval {
namespace {

using Windows = std::vector<Window>;

TEST(WindowsOf, AreThoseOfTheGuide) {
  // The guide's loop for 10 tokens, max_length 4, stride 2: 3 + 2 + 2 + 2 tokens have something
  // before them.
  EXPECT_EQ(windows_of(10, 4, 2), (Windows{{0, 4, 1}, {2, 6, 4}, {4, 8, 6}, {6, 10, 8}}));
  EXPECT_EQ(windows_of(9, 4, 2), (Windows{{0, 4, 1}, {2, 6, 4}, {4, 8, 6}, {6, 9, 8}}));
  // Side by side, the first token of each has nothing before it.
  EXPECT_EQ(windows_of(7, 4, 4), (Windows{{0, 4, 1}, {4, 7, 5}}));
  EXPECT_EQ(windows_of(4, 4, 1), (Windows{{0, 4, 1}}));
  EXPECT_EQ(windows_of(1, 4, 2), (Windows{{0, 1, 1}}));
}

TEST(WindowsOf, WithoutAStrideTheRestIsCutOff) {
  EXPECT_EQ(windows_of(10, 4, 0), (Windows{{0, 4, 1}}));
  EXPECT_EQ(windows_of(3, 4, 0), (Windows{{0, 3, 1}}));
}

TEST(WindowsOf, ScoreEachTokenOnce) {
  for (std::int64_t tokens = 1; tokens < 30; ++tokens)
    for (std::int64_t length = 2; length < 9; ++length)
      for (std::int64_t stride = 1; stride < length; ++stride) {
        std::int64_t next = 1;
        for (const Window& w : windows_of(tokens, length, stride)) {
          EXPECT_EQ(w.scored, next);
          EXPECT_LE(w.end - w.begin, length);
          next = w.end;
        }
        EXPECT_EQ(next, tokens);
      }
}

}  // namespace
}  // namespace ostro::eval
