#include "text/string_index.h"

#include <gtest/gtest.h>

#include <string>

namespace ostro::txt {
namespace {

TEST(StringIndex, NumbersInOrderAndFindsAgain) {
  StringIndex index;
  EXPECT_EQ(index.find("a"), StringIndex::kAbsent);
  for (std::uint32_t i = 0; i < 5000; ++i) {
    const auto [number, is_new] = index.insert("token " + std::to_string(i * 7919 % 10007));
    EXPECT_EQ(number, i);
    EXPECT_TRUE(is_new);
  }
  for (std::uint32_t i = 0; i < 5000; ++i) {
    const std::string s = "token " + std::to_string(i * 7919 % 10007);
    EXPECT_EQ(index.find(s), i);
    EXPECT_EQ(index[i], s);
    EXPECT_EQ(index.insert(s), std::pair(i, false));
  }
  EXPECT_EQ(index.find("token"), StringIndex::kAbsent);
  EXPECT_EQ(index.size(), 5000u);
}

TEST(StringIndex, HoldsTheEmptyStringAndNul) {
  StringIndex index;
  using namespace std::string_view_literals;
  index.insert("");
  index.insert("\0"sv);
  index.insert("\0\0"sv);
  index.reserve(100, 1000);
  EXPECT_EQ(index.find(""), 0u);
  EXPECT_EQ(index.find("\0"sv), 1u);
  EXPECT_EQ(index[2], "\0\0"sv);
}

}  // namespace
}  // namespace ostro::txt
