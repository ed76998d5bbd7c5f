// An engine on a GPU: every request gets in a full batch, replayed or not, what it gets alone.
#include "engine/engine.h"

#include "backends/cuda/backend.h"
#include "builder/dummy_source.h"
#include "engine/mixed_requests.h"

namespace ostro::engine {
namespace {

model::EngineConfig config(DType dtype) {
  model::EngineConfig c;
  c.model.architecture = "MixtralForCausalLM";
  c.model.vocab = 1000;
  c.model.hidden = 256;
  c.model.layers = 2;
  c.model.heads = 8;
  c.model.kv_heads = 2;
  c.model.head_dim = 64;
  c.model.inter = 320;
  c.model.experts = 8;
  c.model.top_k = 2;
  c.model.context = 1024;
  c.model.dtype = dtype;
  c.limits = {.max_batch_size = 1024,
              .max_input_len = 1024,
              .max_output_len = 1024,
              .max_beam_width = 1,
              .max_num_tokens = 2048,
              .tokens_per_block = 16};
  return c;
}

struct OnGpu {
  explicit OnGpu(const model::EngineConfig& c, const RankOptions& options)
      : weights(c.model), rank(weights, c, model::Mapping{}, *gpu, *world, options, Log{}) {}

  std::unique_ptr<ops::Backend> gpu = cuda::make_backend();
  std::unique_ptr<comm::Communicator> world = comm::make_single();
  builder::DummySource weights;
  Rank rank;
};

TEST(CudaEngine, EveryRequestInAFullBatchGetsWhatItGetsAlone) {
  for (DType dtype : {DType::bf16, DType::f32}) {
    const model::EngineConfig c = config(dtype);
    const std::vector<Request> all = requests(300, 1000);
    Outputs alone;
    {
      OnGpu gpu(c, {.kv_cache_tokens = 64 << 10, .record_steps = false});
      Engine engine(gpu.rank, c.model, {.block_reuse = false});
      alone = run(engine, all, 1);
    }
    for (bool graphs : {false, true}) {
      SCOPED_TRACE(text(name(dtype), " graphs ", graphs));
      OnGpu gpu(c, {.kv_cache_tokens = 64 << 10, .record_steps = graphs});
      Engine engine(gpu.rank, c.model);
      EXPECT_EQ(run(engine, all, 128), alone);
      EXPECT_EQ(run(engine, all, 128), alone) << "once more, every shape recorded";
    }
  }
}

// Few blocks: requests wait for them, or lose them and start again.
TEST(CudaEngine, BlocksRunOut) {
  const model::EngineConfig c = config(DType::bf16);
  const std::vector<Request> all = requests(150, 1000);
  OnGpu roomy(c, {.kv_cache_tokens = 64 << 10});
  Engine first(roomy.rank, c.model);
  const Outputs want = run(first, all, 64);
  for (sched::Capacity capacity :
       {sched::Capacity::guaranteed_no_evict, sched::Capacity::max_utilization}) {
    OnGpu tight(c, {.kv_cache_tokens = 640});
    Engine engine(tight.rank, c.model, {.capacity = capacity});
    EXPECT_EQ(run(engine, all, 64), want);
  }
}

TEST(CudaEngine, CancelledRequestsDisturbNobody) {
  const model::EngineConfig c = config(DType::bf16);
  OnGpu gpu(c, {.kv_cache_tokens = 64 << 10});
  Engine engine(gpu.rank, c.model);
  const std::vector<Request> all = requests(60, 1000);
  const Outputs want = run(engine, all, 60);
  Outputs got;
  std::map<RequestId, std::size_t> index;
  std::vector<RequestId> doomed;
  for (std::size_t i = 0; i < all.size(); ++i) {
    index[engine.submit(all[i])] = i;
    Request other{.prompt = {std::int32_t(i), 3, 4}, .max_new_tokens = 200};
    doomed.push_back(engine.submit(other));
  }
  while (!engine.idle()) {
    for (const Event& e : engine.step()) {
      const auto it = index.find(e.id);
      if (it == index.end() || !e.has_token) continue;
      got[{it->second, e.sequence}].tokens.push_back(e.token);
    }
    if (!doomed.empty()) {
      engine.cancel(doomed.back());
      doomed.pop_back();
    }
  }
  engine.pool().check();
  EXPECT_EQ(engine.pool().available(), engine.pool().total());
  for (const auto& [key, o] : want) EXPECT_EQ(got[key].tokens, o.tokens) << key.first;
}

// More rows than any recorded shape has.
TEST(CudaEngine, AThousandRequestsAtOnce) {
  const model::EngineConfig c = config(DType::bf16);
  OnGpu gpu(c, {.kv_cache_tokens = 128 << 10});
  Engine engine(gpu.rank, c.model);
  std::vector<std::vector<std::int32_t>> tokens(1024);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    engine.submit({.prompt = {std::int32_t(i % 100), 7, 9}, .max_new_tokens = 12});
  while (!engine.idle())
    for (const Event& e : engine.step())
      if (e.has_token) tokens[std::size_t(e.id - 1)].push_back(e.token);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ASSERT_EQ(tokens[i].size(), 12u) << i;
    EXPECT_EQ(tokens[i], tokens[i % 100]) << i;
  }
}

// Prompts of 8k and 32k: the same tokens whatever the chunks.
TEST(CudaEngine, LongPrompts) {
  model::EngineConfig c = config(DType::bf16);
  c.model.context = 33 << 10;
  c.limits.max_input_len = c.limits.max_output_len = c.model.context;
  for (std::int64_t length : {8 << 10, 32 << 10}) {
    Request request{.prompt = {}, .max_new_tokens = 3};
    for (std::int64_t i = 0; i < length; ++i)
      request.prompt.push_back(std::int32_t(i * 7919 % 1000));
    std::vector<std::vector<std::int32_t>> tokens;
    for (std::int64_t chunk : {2048, 300}) {
      OnGpu gpu(c, {.max_batch_size = 4, .max_num_tokens = chunk, .kv_cache_tokens = 34 << 10});
      Engine engine(gpu.rank, c.model);
      engine.submit(request);
      auto& ids = tokens.emplace_back();
      while (!engine.idle())
        for (const Event& e : engine.step())
          if (e.has_token) ids.push_back(e.token);
    }
    EXPECT_EQ(tokens[0].size(), 3u);
    EXPECT_EQ(tokens[0], tokens[1]) << length;
  }
}

}  // namespace
}  // namespace ostro::engine
