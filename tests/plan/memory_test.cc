#include "plan/memory.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ostro::plan {
namespace {

constexpr std::size_t kGb = 1'000'000'000;

const model::StepLimits kLimits{.tokens = 8192,
                                .requests = 2048,
                                .logit_rows = 2048,
                                .kv_blocks = 0,
                                .block_tokens = 64,
                                .context = 32768};

// 46.70 G parameters of 2 bytes, 32 layers of 8 heads of 128, keys and values.
TEST(MemoryPlan, OfMixtral) {
  const model::ModelConfig c = model::preset("mixtral-8x7b");
  const MemoryPlan whole = plan_memory(c, {}, 0, kLimits);
  EXPECT_EQ(whole.weights_bytes, 2 * std::size_t{46'702'792'704});
  EXPECT_EQ(whole.block_bytes, std::size_t{64} * 32 * 8 * 128 * 2 * 2);
  // At least the residual and the logits; at most a few of each.
  const std::size_t least = 8192 * 4096 * 4 + 2048 * 32000 * 4;
  EXPECT_GT(whole.step_bytes, least);
  EXPECT_LT(whole.step_bytes, 4 * least);
  const model::Mapping two{.tp = 2, .pp = 1, .moe_tp = 2, .moe_ep = 1};
  const MemoryPlan half = plan_memory(c, two, 0, kLimits);
  EXPECT_NEAR(double(half.weights_bytes), double(whole.weights_bytes) / 2, 0.2e9);
  EXPECT_EQ(half.block_bytes, whole.block_bytes / 2);
}

TEST(MemoryPlan, OfMixtralInFp8) {
  model::ModelConfig c = model::preset("mixtral-8x7b");
  const MemoryPlan bf16 = plan_memory(c, {}, 0, kLimits);
  c.quantization.weights = c.quantization.kv_cache = model::Quantization::Format::fp8;
  const MemoryPlan fp8 = plan_memory(c, {}, 0, kLimits);
  EXPECT_NEAR(double(fp8.weights_bytes), double(bf16.weights_bytes) / 2, 0.5e9);
  EXPECT_EQ(fp8.block_bytes, bf16.block_bytes / 2);
}

// 16384 slots of 8192 tokens: hidden activations of 14336, outputs of 4096, in whose memory the
// rows of x lie until then; of fp8 x rounded; and up to 2^17 parts of attention; a quarter more.
// Only ranks that talk keep buffers for it.
TEST(MemoryPlan, OfWhatKernelsKeep) {
  model::ModelConfig c = model::preset("mixtral-8x7b");
  const double tokens = 8192, slots = 16384, parts = double(1 << 17) * 130 * 4;
  const MemoryPlan bf16 = plan_memory(c, {}, 0, kLimits);
  EXPECT_NEAR(double(bf16.scratch_bytes), 1.25 * (slots * (2 * 14336 + 4 * 4096 + 10) + parts),
              1e6);
  c.quantization.weights = model::Quantization::Format::fp8;
  const MemoryPlan fp8 = plan_memory(c, {}, 0, kLimits);
  EXPECT_NEAR(double(fp8.scratch_bytes),
              1.25 * (slots * (14336 + 4 * 112 + 4 * 4096 + 10) + tokens * (4096 + 4) + parts),
              1e6);
  const model::Mapping two{.tp = 2, .pp = 1, .moe_tp = 2, .moe_ep = 1};
  EXPECT_NEAR(double(fp8.scratch_bytes - plan_memory(c, two, 0, kLimits).scratch_bytes),
              1.25 * slots * (14336 / 2 + 4 * 56), 1e6);
  EXPECT_EQ(fp8.transport_bytes, 0u);
  EXPECT_GT(plan_memory(c, two, 0, kLimits).transport_bytes, 0u);
  EXPECT_EQ(fp8.least_bytes(), fp8.weights_bytes + fp8.block_bytes + fp8.step_bytes +
                                   fp8.scratch_bytes + fp8.graphs_bytes);
  c.experts = c.top_k = 0;  // dense: no slots
  EXPECT_LT(plan_memory(c, {}, 0, kLimits).scratch_bytes, fp8.scratch_bytes / 2);
}

// All shapes of small engines; of large ones as many as fit into 512 MiB.
TEST(MemoryPlan, OfGraphs) {
  const model::ModelConfig c = model::preset("mixtral-8x7b");
  EXPECT_EQ(plan_memory(c, {}, 0, kLimits).graphs_bytes, 512u << 20);
  model::StepLimits limits = kLimits;
  limits.requests = limits.logit_rows = 8;
  limits.context = 4 * limits.block_tokens;
  // 1, 2, 4 and 8 requests, tables of 1 to 4 blocks, 32 layers and the rest.
  EXPECT_EQ(plan_memory(c, {}, 0, limits).graphs_bytes, 4u * 4 * 33 * (96 << 10));
  limits.record_steps = false;
  EXPECT_EQ(plan_memory(c, {}, 0, limits).graphs_bytes, 0u);
}

// By kind, in bf16 and fp8 with its scales, and over the ranks of a layout.
TEST(WeightsOfRank, ByKind) {
  model::ModelConfig c = model::preset("mixtral-8x7b");
  const WeightBytes bf16 = weights_of_rank(c, {}, 0);
  const std::size_t expert = std::size_t{3} * 4096 * 14336, attention = 2 * 4096 * (4096 + 1024);
  EXPECT_EQ(bf16.experts, 2 * 32 * 8 * expert);
  EXPECT_EQ(bf16.attention, 2 * 32 * attention);
  EXPECT_EQ(bf16.router, 2u * 32 * 8 * 4096);
  EXPECT_EQ(bf16.norms, 2u * 65 * 4096);
  EXPECT_EQ(bf16.embedding, 2u * 32000 * 4096);
  EXPECT_EQ(bf16.head, bf16.embedding);
  c.quantization.weights = model::Quantization::Format::fp8;
  const WeightBytes fp8 = weights_of_rank(c, {}, 0);
  EXPECT_EQ(fp8.experts, 32 * 8 * (expert + 4 * (2 * 14336 + 4096)));
  EXPECT_EQ(fp8.attention, 32 * (attention + 4 * (6144 + 4096)));
  EXPECT_EQ(fp8.head, bf16.head);
  c.quantization.weights = model::Quantization::Format::int4;
  const WeightBytes int4 = weights_of_rank(c, {}, 0);
  EXPECT_EQ(int4.experts, 32 * 8 * (expert / 2 + 2 * expert / 128));
  EXPECT_EQ(int4.attention, 32 * (attention / 2 + 2 * attention / 128));
  EXPECT_EQ(int4.router, bf16.router);

  const model::Mapping grid{.tp = 2, .pp = 4, .moe_tp = 1, .moe_ep = 2};
  WeightBytes sum;
  for (std::int64_t r = 0; r < grid.ranks(); ++r) {
    const WeightBytes rank = weights_of_rank(model::preset("mixtral-8x7b"), grid, r);
    sum.experts += rank.experts;
    sum.attention += rank.attention;
    sum.router += rank.router;
    sum.head += rank.head;
  }
  EXPECT_EQ(sum.experts, bf16.experts);
  EXPECT_EQ(sum.attention, bf16.attention);
  EXPECT_EQ(sum.router, 2 * bf16.router);  // every rank of a stage has it whole
  EXPECT_EQ(sum.head, bf16.head);
}

TEST(Capacity, IsOfTheRankWithTheFewestTokens) {
  model::ModelConfig c = model::preset("mixtral-8x7b");
  const MemoryPlan bf16 = plan_memory(c, {}, 0, kLimits);
  const std::size_t free = bf16.weights_bytes + bf16.working_bytes() + 20 * kGb;
  const Capacity one = capacity(c, {}, kLimits, free, 0.9);
  // 18 GB of blocks of 64 x 131072 bytes.
  EXPECT_EQ(one.kv_tokens, 2145 * 64);
  EXPECT_FALSE(capacity(c, {}, kLimits, bf16.least_bytes() - 1, 0.9).fits());
  EXPECT_EQ(capacity(c, {}, kLimits, bf16.least_bytes() - 1, 0.9).kv_tokens, 0);
  c.layers = 3;  // the second of two stages has two of them, and the head
  EXPECT_EQ(capacity(c, {.pp = 2}, kLimits, 20 * kGb, 0.9).rank, 1);
}

std::string refusal(const model::Mapping& m, std::size_t free) {
  const model::ModelConfig c = model::preset("mixtral-8x7b");
  try {
    require_fit(plan_memory(c, m, 0, kLimits), c, m, kLimits, free);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

TEST(MemoryPlan, ARefusalSaysWhatWouldFit) {
  EXPECT_EQ(refusal({}, 100 * kGb), "");
  const std::string on_80_gb = refusal({}, 84 * kGb);
  EXPECT_NE(on_80_gb.find("its weights take 93.4 GB on this rank and a step "), std::string::npos)
      << on_80_gb;
  EXPECT_NE(on_80_gb.find("the device has 84 GB free; --tp_size 2 fits"), std::string::npos)
      << on_80_gb;
  EXPECT_NE(refusal({}, 20 * kGb).find("--tp_size 8 fits"), std::string::npos);
  const std::string tight = refusal({}, 93'500 * kGb / 1000);
  EXPECT_NE(tight.find("a smaller --max_batch_size (now 2048) or --max_num_tokens (now 8192)"),
            std::string::npos)
      << tight;
  // No number of ranks makes a step small enough.
  EXPECT_EQ(refusal({}, kGb / 10).find("fits"), std::string::npos);
}

}  // namespace
}  // namespace ostro::plan
