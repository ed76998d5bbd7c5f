// An engine on a GPU: every request gets in a full batch, replayed or not, what it gets alone.
#include "engine/engine.h"

#include "backends/cuda/gpu_engine.h"
#include "engine/mixed_requests.h"

namespace ostro::engine {
namespace {

TEST(CudaEngine, EveryRequestInAFullBatchGetsWhatItGetsAlone) {
  for (const Format& format : {kBf16, kF32, kFp8}) {
    const model::EngineConfig c = config(format);
    const std::vector<Request> all = requests(300, 1000);
    Outputs alone;
    {
      OnGpu gpu(c, {.kv_cache_tokens = 64 << 10, .record_steps = false});
      Engine engine(gpu.rank, c.model, {.block_reuse = false});
      alone = run(engine, all, 1);
    }
    for (bool graphs : {false, true}) {
      SCOPED_TRACE(text(format.name, " graphs ", graphs));
      OnGpu gpu(c, {.kv_cache_tokens = 64 << 10, .record_steps = graphs});
      Engine engine(gpu.rank, c.model);
      EXPECT_EQ(run(engine, all, 128), alone);
      EXPECT_EQ(run(engine, all, 128), alone) << "once more, every shape recorded";
    }
  }
}

// Few blocks: requests wait for them, or lose them and start again.
TEST(CudaEngine, BlocksRunOut) {
  const std::vector<Request> all = requests(150, 1000);
  for (const Format& format : {kBf16, kFp8}) {
    SCOPED_TRACE(format.name);
    const model::EngineConfig c = config(format);
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
}

TEST(CudaEngine, CancelledRequestsDisturbNobody) {
  for (const Format& format : {kBf16, kFp8}) {
    SCOPED_TRACE(format.name);
    const model::EngineConfig c = config(format);
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
}

// Decode steps that all replay one graph, until half of their requests are cancelled at once, and
// another graph of fewer rows afterwards.
TEST(CudaEngine, HalfOfAReplayedBatchIsCancelled) {
  constexpr std::size_t kRequests = 64;
  constexpr std::int64_t kTokens = 40;
  const model::EngineConfig c = config(kFp8);
  OnGpu gpu(c, {.kv_cache_tokens = 64 << 10});
  Engine engine(gpu.rank, c.model);
  const auto tokens_of = [&](std::size_t cancelled_after) {
    std::map<RequestId, std::vector<std::int32_t>> tokens;
    std::vector<RequestId> ids;
    for (std::size_t i = 0; i < kRequests; ++i)
      ids.push_back(engine.submit({.prompt = {std::int32_t(i), 5, 6}, .max_new_tokens = kTokens}));
    for (std::size_t step = 0; !engine.idle(); ++step) {
      if (step == cancelled_after)
        for (std::size_t i = 1; i < kRequests; i += 2) engine.cancel(ids[i]);
      for (const Event& e : engine.step())
        if (e.has_token) tokens[e.id].push_back(e.token);
    }
    std::vector<std::vector<std::int32_t>> kept;
    for (std::size_t i = 0; i < kRequests; i += 2) kept.push_back(tokens[ids[i]]);
    EXPECT_EQ(engine.pool().available(), engine.pool().total());
    return kept;
  };
  const auto want = tokens_of(1000);  // nobody is
  for (const auto& ids : want) EXPECT_EQ(ids.size(), std::size_t(kTokens));
  EXPECT_EQ(tokens_of(20), want);
  EXPECT_EQ(tokens_of(5), want);
}

// A batch of every size about the edges of the recorded shapes, and of more rows than any has.
TEST(CudaEngine, BatchesOfUpToAThousand) {
  constexpr std::size_t kPrompts = 100;
  const std::vector<std::size_t> sizes = {
      kPrompts, 1,  2,   3,   4,   5,   8,   9,   16,  17,  24,  32,  33,  48,  63,  64,
      65,       96, 127, 128, 129, 160, 192, 255, 256, 257, 384, 511, 512, 513, 700, 1024};
  for (const Format& format : {kBf16, kFp8}) {
    SCOPED_TRACE(format.name);
    const model::EngineConfig c = config(format);
    OnGpu gpu(c, {.kv_cache_tokens = 128 << 10});
    Engine engine(gpu.rank, c.model);
    std::vector<std::vector<std::int32_t>> want;
    for (std::size_t size : sizes) {
      std::map<RequestId, std::vector<std::int32_t>> tokens;
      for (std::size_t i = 0; i < size; ++i)
        tokens[engine.submit({.prompt = {std::int32_t(i % kPrompts), 7, 9}, .max_new_tokens = 8})];
      while (!engine.idle())
        for (const Event& e : engine.step())
          if (e.has_token) tokens[e.id].push_back(e.token);
      if (want.empty())
        for (const auto& [id, ids] : tokens) want.push_back(ids);
      std::size_t i = 0;
      for (const auto& [id, ids] : tokens) {
        ASSERT_EQ(ids.size(), 8u) << size << ", request " << i;
        ASSERT_EQ(ids, want[i % kPrompts]) << size << ", request " << i;
        ++i;
      }
    }
  }
}

// The first tokens after a prompt of `length` and their log-probabilities, computed in `chunk`s.
Output after_prompt(const model::EngineConfig& c, std::int64_t length, std::int64_t chunk) {
  Request request{.prompt = {}, .max_new_tokens = 3};
  for (std::int64_t i = 0; i < length; ++i) request.prompt.push_back(std::int32_t(i * 7919 % 1000));
  OnGpu gpu(c, {.max_batch_size = 4, .max_num_tokens = chunk, .kv_cache_tokens = 34 << 10});
  Engine engine(gpu.rank, c.model);
  engine.submit(request);
  Output output;
  while (!engine.idle())
    for (const Event& e : engine.step())
      if (e.has_token) {
        output.tokens.push_back(e.token);
        output.log_probs.push_back(std::bit_cast<std::uint32_t>(e.log_prob));
      }
  EXPECT_EQ(output.tokens.size(), 3u);
  return output;
}

// Prompts of 8k and 32k: the same bits whatever the chunks.
TEST(CudaEngine, LongPrompts) {
  for (const Format& format : {kBf16, kFp8}) {
    model::EngineConfig c = config(format);
    c.model.context = c.limits.max_input_len = c.limits.max_output_len = 33 << 10;
    for (std::int64_t length : {8 << 10, 32 << 10})
      EXPECT_EQ(after_prompt(c, length, 2048), after_prompt(c, length, 300))
          << format.name << ' ' << length;
  }
}

// Two layers of Mixtral 8x7B: a prompt of 32k positions whole is what it is in chunks.
TEST(CudaEngine, ALongPromptAtFullWidth) {
  model::EngineConfig c = config(kFp8);
  c.model.hidden = 4096;
  c.model.heads = 32;
  c.model.kv_heads = 8;
  c.model.head_dim = 128;
  c.model.inter = 14336;
  c.model.context = c.limits.max_input_len = c.limits.max_output_len = 33 << 10;
  c.limits.max_num_tokens = 33 << 10;
  EXPECT_EQ(after_prompt(c, 32 << 10, 33 << 10), after_prompt(c, 32 << 10, 3000));
}

}  // namespace
}  // namespace ostro::engine
