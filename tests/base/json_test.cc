#include "base/json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"

namespace ostro {
namespace {

std::string error_of(const std::string& text, std::size_t most_keys = SIZE_MAX) {
  try {
    parse_json(text, "T", most_keys);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(ParseJson, NestsSixtyFourDeep) {
  EXPECT_EQ(error_of(nested(64)), "");
  EXPECT_EQ(error_of(nested(65)), "T nests JSON deeper than 64");
  EXPECT_EQ(error_of(std::string(1 << 20, '[')), "T nests JSON deeper than 64");
}

TEST(ParseJson, CountsTheKeysOfEachObject) {
  EXPECT_EQ(error_of(R"({"a": {"x": 1, "y": 2}, "b": {"x": 1}})", 2), "");
  EXPECT_EQ(error_of(R"({"a": {"x": 1, "y": 2, "z": 3}})", 2),
            "T has an object of more than 2 keys");
}

TEST(ParseJson, SaysWhereItGoesWrong) {
  EXPECT_EQ(error_of(R"({"a": 1,)"), "T is not JSON: it goes wrong at byte 9 of 8");
  EXPECT_EQ(error_of(""), "T is not JSON: it goes wrong at byte 1 of 0");
}

TEST(ParseJson, TakesTimeLinearInTheItems) {
  std::string text = "[{}";
  for (int i = 1; i < 300000; ++i) text += ",{}";
  text += ']';
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "T").size(), 300000u);
  // By a callback that looks through all items at each, 100000 take 10 s.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

}  // namespace
}  // namespace ostro
