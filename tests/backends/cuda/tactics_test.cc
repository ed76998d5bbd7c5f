// Tiles that were measured, or that only a table asks for, change no result.
#include "builder/tune.h"

#include <algorithm>

#include "backends/cuda/gpu_engine.h"
#include "engine/mixed_requests.h"

namespace ostro::engine {
namespace {

using Weights = model::Quantization::Format;

model::EngineConfig config(Weights weights, std::int64_t experts) {
  model::EngineConfig c = config(kBf16);
  if (experts == 0) c.model.architecture = "LlamaForCausalLM";
  c.model.inter = 384;
  c.model.experts = experts;
  c.model.top_k = experts > 0 ? 2 : 0;
  c.model.quantization.weights = weights;
  c.limits.max_batch_size = 128;
  c.limits.max_num_tokens = 160;
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
  for (const auto& [weights, experts] : {std::pair<Weights, std::int64_t>{Weights::none, 8},
                                         {Weights::fp8, 8},
                                         {Weights::int4, 8},
                                         {Weights::fp8, 0}}) {
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
