// Tiles that were measured, or that only a table asks for, change no result.
#include "builder/tune.h"

#include <algorithm>

#include "backends/cuda/backend.h"
#include "builder/dummy_source.h"
#include "engine/engine.h"
#include "engine/mixed_requests.h"

namespace ostro::engine {
namespace {

using Format = model::Quantization::Format;

model::EngineConfig config(Format weights, std::int64_t experts) {
  model::EngineConfig c;
  c.model.architecture = experts > 0 ? "MixtralForCausalLM" : "LlamaForCausalLM";
  c.model.vocab = 1000;
  c.model.hidden = 256;
  c.model.layers = 2;
  c.model.heads = 8;
  c.model.kv_heads = 2;
  c.model.head_dim = 64;
  c.model.inter = 384;
  c.model.experts = experts;
  c.model.top_k = experts > 0 ? 2 : 0;
  c.model.context = 1024;
  c.model.quantization.weights = weights;
  c.limits = {.max_batch_size = 128,
              .max_input_len = 1024,
              .max_output_len = 1024,
              .max_beam_width = 1,
              .max_num_tokens = 160,
              .tokens_per_block = 16};
  return c;
}

Outputs outputs(const model::EngineConfig& c, ops::Backend& gpu) {
  const auto world = comm::make_single();
  builder::DummySource weights(c.model);
  Rank rank(weights, c, model::Mapping{}, gpu, *world, {.kv_cache_tokens = 64 << 10}, Log{});
  Engine engine(rank, c.model);
  return run(engine, requests(150, 1000), 128);
}

TEST(CudaTactics, ChangeNoToken) {
  for (const auto& [weights, experts] : {std::pair<Format, std::int64_t>{Format::none, 8},
                                         {Format::fp8, 8},
                                         {Format::int4, 8},
                                         {Format::fp8, 0}}) {
    SCOPED_TRACE(text(name(weights), ' ', experts));
    const model::EngineConfig c = config(weights, experts);
    const auto gpu = cuda::make_backend();
    const Outputs want = outputs(c, *gpu);

    // Every tile that may be measured has the bits of the plan's.
    const auto tuned = builder::tune(c, *gpu);
    EXPECT_FALSE(tuned.empty());
    for (const builder::TunedProduct& t : tuned)
      EXPECT_TRUE(t.choice.wrong.empty())
          << t.name << ' ' << t.tokens << ": " << t.choice.wrong.size() << " of other bits, "
          << t.choice.wrong.front();

    // Everywhere another tile than the plan's.
    ops::Tactics others;
    for (const builder::TunedProduct& t : tuned)
      others.set(t.product, t.tokens, gpu->tactics(t.product, t.tokens).back());
    gpu->use(others);
    for (const builder::TunedProduct& t : tuned)
      ASSERT_EQ(gpu->tactics(t.product, t.tokens).front(), others.find(t.product, t.tokens));
    EXPECT_EQ(outputs(c, *gpu), want);
  }
}

TEST(CudaTactics, AreRefusedIfNoKernelHasThem) {
  const auto gpu = cuda::make_backend();
  ops::Tactics t;
  t.set({.weights = DType::u8, .n = 128, .k = 256}, 8, 256);
  EXPECT_THROW(gpu->use(t), InvalidArgument) << "int4 tiles end at 128 tokens";
  t = {};
  t.set({.weights = DType::bf16, .n = 128, .k = 256}, 8, 7);
  EXPECT_THROW(gpu->use(t), InvalidArgument);
}

}  // namespace
}  // namespace ostro::engine
