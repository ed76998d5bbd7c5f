#include "model/step.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ostro::model {
namespace {

Step example() {
  return {.ids = {5, 6, 7, 8},
          .query_start = {0, 3, 4},
          .context_len = {3, 17},
          .block_table = {4, -1, 9, 2},
          .blocks_each = 2,
          .rope_tokens = {11, 40},
          .logit_rows = {2, 3},
          .host_rows = {1},
          .samples = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
          .block_copies = {4, 5}};
}

void expect_equal(const Step& a, const Step& b) {
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.query_start, b.query_start);
  EXPECT_EQ(a.context_len, b.context_len);
  EXPECT_EQ(a.block_table, b.block_table);
  EXPECT_EQ(a.blocks_each, b.blocks_each);
  EXPECT_EQ(a.rope_tokens, b.rope_tokens);
  EXPECT_EQ(a.logit_rows, b.logit_rows);
  EXPECT_EQ(a.host_rows, b.host_rows);
  EXPECT_EQ(a.block_copies, b.block_copies);
  EXPECT_EQ(a.samples, b.samples);
}

TEST(Step, SurvivesPacking) {
  expect_equal(unpack(pack(example())), example());
  EXPECT_EQ(example().tokens(), 4);
  EXPECT_EQ(example().requests(), 2);
}

TEST(Step, SurvivesPackingWithEmptyArrays) {
  Step step = example();
  step.logit_rows.clear();  // a chunk in the middle of a prompt
  expect_equal(unpack(pack(step)), step);
  expect_equal(unpack(pack(Step{})), Step{});
  // An empty array ends the ranks' loop, so no step may look like one.
  EXPECT_FALSE(pack(Step{}).empty());
}

TEST(Step, APlanThatEndsEarlyIsABug) {
  const std::vector<std::int32_t> whole = pack(example());
  for (std::size_t words = 0; words < whole.size(); ++words) {
    const std::vector<std::int32_t> cut(whole.begin(), whole.begin() + std::ptrdiff_t(words));
    EXPECT_THROW(unpack(cut), InternalError) << words << " of " << whole.size() << " words";
  }
}

TEST(Step, APlanWithANegativeLengthIsABug) {
  std::vector<std::int32_t> flat = pack(example());
  flat[1] = -1;
  EXPECT_THROW(unpack(flat), InternalError);
}

}  // namespace
}  // namespace ostro::model
