#include "plan/step_time.h"

#include <gtest/gtest.h>

namespace ostro::plan {
namespace {

const model::ModelConfig k8x7b = model::preset("mixtral-8x7b");
const model::ModelConfig k8x22b = model::preset("mixtral-8x22b");

model::ModelConfig fp8(model::ModelConfig c, bool kv) {
  using Format = model::Quantization::Format;
  c.quantization = {.weights = Format::fp8, .kv_cache = kv ? Format::fp8 : Format::none};
  return c;
}

Machine h100_at(double read_bytes_per_s) {
  Machine m = machine("h100");
  m.read_bytes_per_s = read_bytes_per_s;
  return m;
}

double decode_ms(const model::ModelConfig& c, const Machine& m, double batch, std::int64_t tp = 1) {
  const model::Mapping mapping{.tp = tp, .moe_tp = tp};
  const StageTime t = stage_time(c, mapping, m, {.decodes = batch, .context = 512}, 0);
  return (t.total() - t.all_reduce) * 1e3;
}

// By hand: 46.4 GB of fp8 weights at 3.15 TB/s take 14.74 ms; a token's 12.6 G multiply-adds at
// 0.65 of 1385 TFLOP/s 28.0 us. In bf16 92.9 GB take 29.5 ms, and a token at 0.65 of 757 51.3 us.
TEST(StageTime, RidgeByHand) {
  EXPECT_NEAR(ridge_tokens(fp8(k8x7b, true), machine("h100")), 526, 2);
  EXPECT_NEAR(ridge_tokens(k8x7b, machine("h100")), 575, 2);
  EXPECT_NEAR(ridge_tokens(fp8(k8x7b, true), h100_at(2 * 3.15e12)), 263, 1);
}

// By hand, one H100 at 2.85 TB/s, fp8 weights, bf16 keys and values, context 512. Batch 32: 8.00
// experts in use give 45.09 GB, attention and head 1.61 GB, keys and values 2.15 GB: 17.14 ms. The
// scales of rows, which the hand leaves out, are 0.03 %.
TEST(StageTime, DecodeByHand) {
  const Machine m = h100_at(2.85e12);
  const std::pair<double, double> limits[] = {
      {1, 4.54}, {8, 14.99}, {32, 17.14}, {128, 19.41}, {256, 22.45}};
  for (const auto& [batch, ms] : limits)
    EXPECT_NEAR(decode_ms(fp8(k8x7b, false), m, batch), ms, ms * 0.003) << batch;
  EXPECT_NEAR(decode_ms(fp8(k8x7b, true), m, 128), 17.90, 0.06);

  Machine h200 = h100_at(4.2e12);
  EXPECT_NEAR(decode_ms(k8x7b, h200, 1), 6.09, 0.02);
  EXPECT_NEAR(decode_ms(k8x7b, h200, 64), 23.20, 0.07);
  // 8x22B shared by four: 12.50 ms at batch 32, without the messages.
  EXPECT_NEAR(decode_ms(fp8(k8x22b, true), m, 32, 4), 12.50, 0.05);
}

// Prompts of 2048 tokens in fp8: 33.34 ms of experts, 3.97 of attention's matrices, 1.45 of
// attention, 0.09 for one row of logits.
TEST(StageTime, PrefillByHand) {
  const StageTime t = stage_time(fp8(k8x7b, false), {}, h100_at(2.85e12),
                                 {.prompt_tokens = 2048, .prompt_context = 1024}, 0);
  EXPECT_NEAR(t.experts * 1e3, 33.34, 0.05);
  EXPECT_NEAR(t.dense * 1e3, 3.97, 0.02);
  EXPECT_NEAR(t.attention * 1e3, 1.45, 0.01);
  EXPECT_NEAR(t.head * 1e3, 0.09, 0.005);
  EXPECT_EQ(t.all_reduce + t.send + t.wire_bytes, 0);
}

// Eight tokens on two ranks: 64 sums of 8 x 4096 floats, of which a rank sends 2 (n - 1) / n = 1
// times the bytes, and half of 8 x 32000 logits.
TEST(StageTime, TensorParallelTalks) {
  const model::Mapping two{.tp = 2, .moe_tp = 2};
  const StepLoad load{.decodes = 8, .context = 100};
  const StageTime t = stage_time(k8x7b, two, machine("h100"), load, 0);
  const double sums = 64.0 * 8 * 4096 * 4, logits = 0.5 * 8 * 32000 * 4;
  EXPECT_DOUBLE_EQ(t.wire_bytes, sums + logits);
  EXPECT_NEAR(t.all_reduce, 65 * 10e-6 + (sums + logits) / 370e9, 1e-12);
  EXPECT_DOUBLE_EQ(stage_time(k8x7b, two, machine("h100"), load, 0, 2).wire_bytes,
                   sums / 2 + logits);
}

TEST(StageTime, StagesSendOverTheNetworkWhereTheNodeEnds) {
  const model::Mapping mapping{.tp = 4, .pp = 4, .moe_tp = 4};
  const auto stage = [&](std::int64_t i) {
    return stage_time(k8x7b, mapping, machine("h100"), {.decodes = 10, .context = 100}, i);
  };
  const double bytes = 10 * 4096 * 4;
  EXPECT_NEAR(stage(0).send, 10e-6 + bytes / 370e9, 1e-12);
  EXPECT_NEAR(stage(1).send, 30e-6 + bytes / 48e9, 1e-12);  // ranks 4-7 to 8-11
  EXPECT_EQ(stage(3).send, 0);
  EXPECT_EQ(stage(0).head, 0);
  EXPECT_GT(stage(3).head, 0);
  EXPECT_DOUBLE_EQ(stage(0).experts, stage(3).experts);
}

// Spread experts: the mean is shared by the same number of ranks, the busiest has more.
TEST(StageTime, ExpertParallelWaitsForTheBusiest) {
  const auto experts = [&](std::int64_t ep, double rows) {
    return stage_time(fp8(k8x7b, false), {.tp = 8, .moe_tp = 8 / ep, .moe_ep = ep}, machine("h100"),
                      {.decodes = rows, .context = 1}, 0)
        .experts;
  };
  EXPECT_GT(experts(8, 1), 3 * experts(1, 1));  // one rank reads a whole expert, the others wait
  EXPECT_GT(experts(8, 8192), experts(1, 8192));
  // sqrt(2 ln 8 * 7/8 / 2048) = 4.2 % at 2048 choices a rank.
  EXPECT_NEAR(experts(8, 8192) / experts(1, 8192), 1.042, 0.001);
}

TEST(StageTime, AWindowBoundsAttention) {
  model::ModelConfig c = k8x7b;
  c.window = 1000;
  const auto attention = [&](double context) {
    return stage_time(c, {}, machine("h100"), {.decodes = 4, .context = context}, 0).attention;
  };
  EXPECT_LT(attention(500), attention(1000));
  EXPECT_EQ(attention(1000), attention(5000));
}

}  // namespace
}  // namespace ostro::plan
