#include "model/step_arrays.h"

#include <gtest/gtest.h>

#include <set>

namespace ostro::model {
namespace {

// `n` requests that continue by one token each, over `blocks` blocks.
Step decode_step(std::int32_t n, std::int32_t blocks) {
  Step step;
  step.query_start.push_back(0);
  step.blocks_each = blocks;
  for (std::int32_t r = 0; r < n; ++r) {
    step.ids.push_back(10 + r);
    step.query_start.push_back(r + 1);
    step.context_len.push_back(5 + r);
    for (std::int32_t i = 0; i < blocks; ++i) step.block_table.push_back(100 * r + i);
    step.rope_tokens.push_back(40 + r);
    step.logit_rows.push_back(r);
    ops::SampleSettings settings;
    settings.row = r;
    settings.step = 7;
    step.add_sample(settings);
  }
  return step;
}

TEST(StepArrays, ShapesAreCounted) {
  for (const auto& [tokens, blocks] : {std::pair{512, 8}, {100, 5}, {1, 1}, {700, 3}}) {
    std::set<std::pair<std::int64_t, std::int64_t>> shapes;
    StepShape shape;
    for (std::int32_t n = 1; n <= tokens; ++n)
      for (std::int32_t b = 1; b <= blocks; ++b)
        if (pad_decode_step(decode_step(n, b), tokens, blocks, shape))
          shapes.insert({shape.tokens, shape.blocks_each});
    EXPECT_EQ(padded_shapes(tokens, blocks), std::int64_t(shapes.size())) << tokens;
  }
}

TEST(StepArrays, DecodeStepsArePaddedToFewShapes) {
  std::int64_t shapes = 0, last = 0;
  for (std::int32_t n = 1; n <= 512; ++n) {
    StepShape shape;
    ASSERT_TRUE(pad_decode_step(decode_step(n, 1), 512, 8, shape)) << n;
    EXPECT_GE(shape.tokens, n);
    EXPECT_LE(shape.tokens, 2 * n) << n;
    EXPECT_EQ(shape.requests, shape.tokens);
    EXPECT_EQ(shape.logit_rows, shape.tokens);
    EXPECT_EQ(shape.samples, shape.tokens);
    shapes += shape.tokens != last;
    last = shape.tokens;
  }
  EXPECT_EQ(shapes, 19);
  EXPECT_EQ(last, 512);
  for (const auto& [blocks, want] : {std::pair{1, 1},
                                     {2, 2},
                                     {3, 3},
                                     {4, 4},
                                     {5, 6},
                                     {7, 8},
                                     {9, 12},
                                     {13, 16},
                                     {17, 20},
                                     {100, 100},
                                     {20, 20}}) {
    StepShape shape;
    ASSERT_TRUE(pad_decode_step(decode_step(2, blocks), 512,
                                blocks < 17 ? 512 : std::max(20, blocks), shape));
    EXPECT_EQ(shape.blocks_each, want) << blocks;
  }
}

TEST(StepArrays, OtherStepsAreNotPadded) {
  const auto padded = [](const Step& step, std::int64_t most = 512) {
    StepShape shape;
    return pad_decode_step(step, most, 8, shape);
  };
  EXPECT_TRUE(padded(decode_step(3, 1)));
  EXPECT_FALSE(padded(decode_step(3, 1), 3));  // there is no room for 4
  EXPECT_FALSE(padded(decode_step(513, 1), 2048));
  EXPECT_FALSE(padded(Step{}));
  Step step = decode_step(3, 1);
  step.logit_rows.pop_back();
  EXPECT_FALSE(padded(step));
  step = decode_step(3, 1);  // a request of two tokens and one of none
  step.query_start[1] = 2;
  EXPECT_FALSE(padded(step));
  step = decode_step(3, 1);  // a chunk of a prompt
  step.ids.push_back(1);
  step.query_start[3] = 4;
  EXPECT_FALSE(padded(step));
}

TEST(StepArrays, HoldAStepAndItsPadding) {
  const Step step = decode_step(3, 2);
  const StepShape shape{
      .tokens = 4, .requests = 4, .blocks_each = 3, .logit_rows = 4, .samples = 4};
  for (const std::int64_t half : {0, 2}) {
    const std::int64_t words = StepArrays(shape, half, {}).words;
    std::vector<std::int32_t> memory(std::size_t(words), 0x7f7f7f7f);
    const StepArrays a(shape, half, matrix(memory.data(), DType::i32, 1, words));
    fill(a, step, std::vector<float>{1, 2, 3, 4, 5, 6});
    const auto row = [](const View& v, std::int64_t r = 0) {
      const std::int32_t* p = v.row<const std::int32_t>(r);
      return std::vector<std::int32_t>(p, p + v.cols);
    };
    using Row = std::vector<std::int32_t>;
    EXPECT_EQ(row(a.ids), (Row{10, 11, 12, 0}));
    EXPECT_EQ(row(a.positions), (Row{4, 5, 6, 0}));
    EXPECT_EQ(row(a.rope_table), half ? (Row{0, 1, 2, 0}) : (Row{0, 0, 0, 0}));
    EXPECT_EQ(row(a.requests.query_start), (Row{0, 1, 2, 3, 3}));
    EXPECT_EQ(row(a.requests.context_len), (Row{5, 6, 7, 0}));
    EXPECT_EQ(row(a.requests.block_table, 0), (Row{0, 1, -1}));
    EXPECT_EQ(row(a.requests.block_table, 2), (Row{200, 201, -1}));
    EXPECT_EQ(row(a.requests.block_table, 3), (Row{-1, -1, -1}));
    EXPECT_EQ(row(a.live), (Row{3}));
    EXPECT_EQ(row(a.logit_rows), (Row{0, 1, 2, 0}));
    EXPECT_EQ(row(a.samples, 2)[0], 2);
    EXPECT_EQ(row(a.samples, 3)[0], -1);
    EXPECT_EQ(a.requests.single, 0);
    if (half) {
      EXPECT_EQ(a.inv_freq.row<const float>(2)[1], 6);
      EXPECT_EQ(a.inv_freq.row<const float>(3)[0], 0);
    } else {
      EXPECT_FALSE(a.inv_freq);
    }
  }
}

// A chunk of three tokens follows two single ones.
TEST(StepArrays, TellWhichRequestsHaveOneToken) {
  Step step = decode_step(3, 2);
  step.ids.insert(step.ids.end(), {20, 21});
  step.query_start[3] = 5;
  const StepShape shape = shape_of(step);
  EXPECT_EQ(shape.single, 2);
  const std::int64_t words = StepArrays(shape, 0, {}).words;
  std::vector<std::int32_t> memory(std::size_t(words), 0);
  const StepArrays a(shape, 0, matrix(memory.data(), DType::i32, 1, words));
  fill(a, step, {});
  EXPECT_EQ(a.requests.single, 2);
  ASSERT_EQ(a.requests.rest_start.cols, 2);
  EXPECT_EQ(a.requests.rest_start.as<const std::int32_t>()[0], 0);
  EXPECT_EQ(a.requests.rest_start.as<const std::int32_t>()[1], 3);
  EXPECT_EQ(shape_of(decode_step(3, 2)).single, 3);
  step.query_start = {0, 2, 3, 5};  // the first request has two
  EXPECT_EQ(shape_of(step).single, 0);
}

}  // namespace
}  // namespace ostro::model
