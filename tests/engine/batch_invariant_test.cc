// batch.invariant: what a request gets depends neither on what runs beside it, nor on how its
// prompt is chunked, found in the cache or computed again after a pause. Bit for bit.
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <random>

#include "engine/engine.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

using testing_engine::LoneRank;
using testing_engine::SmallEngine;

struct Output {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> log_probs;  // their bits
  std::vector<std::uint32_t> prompt_log_probs;
  std::vector<Finish> finish;
  bool operator==(const Output&) const = default;
};

// Greedy and sampled, with and without rules, many with the same beginning.
std::vector<Request> requests(std::size_t count) {
  std::mt19937 rng(20240);
  std::vector<std::int32_t> common(40);
  for (auto& t : common) t = std::int32_t(rng() % 97);
  std::vector<Request> all;
  for (std::size_t i = 0; i < count; ++i) {
    Request r;
    if (i % 2) r.prompt.assign(common.begin(), common.begin() + std::ptrdiff_t(8 + rng() % 33));
    for (std::size_t n = 1 + rng() % 12; n > 0; --n) r.prompt.push_back(std::int32_t(rng() % 97));
    r.max_new_tokens = std::int64_t(1 + rng() % 30);
    r.sampling.seed = i;
    if (i % 3) r.sampling.top_k = 0;
    if (i % 5 == 0) r.sampling.repetition_penalty = 1.3f;
    if (i % 7 == 0) r.sampling.no_repeat_ngram_size = 2;
    r.end_ids = {2, 3};
    r.prompt_log_probs = i % 8 == 3;
    r.sequences = i % 11 == 4 ? 3 : 1;
    r.user = std::string(1, char('a' + i % 4));
    all.push_back(std::move(r));
  }
  return all;
}

using Key = std::pair<std::size_t, std::int32_t>;  // request, sequence
using Outputs = std::map<Key, Output>;

Outputs run(Engine& engine, const std::vector<Request>& requests, std::size_t at_once) {
  Outputs outputs;
  std::map<RequestId, std::size_t> index;
  std::size_t next = 0;
  while (next < requests.size() || !engine.idle()) {
    for (; next < requests.size() && index.size() < at_once; ++next)
      index[engine.submit(requests[next])] = next;
    for (const Event& e : engine.step()) {
      Output& o = outputs[{index.at(e.id), e.sequence}];
      if (e.has_token) {
        o.tokens.push_back(e.token);
        o.log_probs.push_back(std::bit_cast<std::uint32_t>(e.log_prob));
      }
      for (float x : e.prompt_log_probs)
        o.prompt_log_probs.push_back(std::bit_cast<std::uint32_t>(x));
      if (e.finish != Finish::none) o.finish.push_back(e.finish);
      if (e.last) index.erase(e.id);
    }
    engine.pool().check();
  }
  EXPECT_EQ(engine.pool().available(), engine.pool().total());
  return outputs;
}

class BatchInvariant : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    small_ = new SmallEngine;
    LoneRank lone(*small_);
    Engine engine(lone.rank, small_->config().model, {.block_reuse = false});
    alone_ = new Outputs(run(engine, requests(200), 1));
  }
  static void TearDownTestSuite() {
    delete alone_;
    delete small_;
  }

  static void expect_as_alone(const Outputs& outputs) {
    ASSERT_EQ(outputs.size(), alone_->size());
    for (const auto& [key, want] : *alone_)
      EXPECT_EQ(outputs.at(key), want) << "request " << key.first << " sequence " << key.second;
  }

  static SmallEngine* small_;
  static Outputs* alone_;
};
SmallEngine* BatchInvariant::small_ = nullptr;
Outputs* BatchInvariant::alone_ = nullptr;

TEST_F(BatchInvariant, InAFullBatch) {
  LoneRank lone(*small_);
  Engine engine(lone.rank, small_->config().model, {.block_reuse = false});
  expect_as_alone(run(engine, requests(200), 200));
  EXPECT_EQ(engine.report().reused_tokens_total, 0);
}

TEST_F(BatchInvariant, InSmallChunks) {
  LoneRank lone(*small_, {.max_batch_size = 4, .max_num_tokens = 5});
  Engine engine(lone.rank, small_->config().model, {.block_reuse = false});
  expect_as_alone(run(engine, requests(200), 8));
}

TEST_F(BatchInvariant, WithPrefixReuse) {
  LoneRank lone(*small_);
  Engine engine(lone.rank, small_->config().model);
  expect_as_alone(run(engine, requests(200), 200));
  const std::int64_t first = engine.report().reused_tokens_total;
  EXPECT_GT(first, 500);
  expect_as_alone(run(engine, requests(200), 1));  // everything was seen before
  EXPECT_GT(engine.report().reused_tokens_total, first + 1500);
}

TEST_F(BatchInvariant, AfterAPause) {
  for (const bool reuse : {false, true}) {
    LoneRank lone(*small_, {.max_num_tokens = 40, .kv_cache_tokens = 104});
    Engine engine(lone.rank, small_->config().model,
                  {.capacity = sched::Capacity::max_utilization, .block_reuse = reuse});
    expect_as_alone(run(engine, requests(200), 200));
    EXPECT_GT(engine.report().pauses_total, 10);
  }
}

// With a window the blocks behind it are given back, and perhaps reused, while others slide.
TEST(BatchInvariantWindow, ReuseAndPausesWithASlidingWindow) {
  model::EngineConfig config = testing_engine::small_config();
  config.model.window = 13;
  const SmallEngine small(config);
  LoneRank lone(small, {.max_num_tokens = 40, .kv_cache_tokens = 160});
  Outputs alone;
  {
    Engine engine(lone.rank, small.config().model, {.block_reuse = false});
    alone = run(engine, requests(60), 1);
  }
  for (const auto capacity :
       {sched::Capacity::guaranteed_no_evict, sched::Capacity::max_utilization}) {
    Engine engine(lone.rank, small.config().model, {.capacity = capacity});
    EXPECT_TRUE(run(engine, requests(60), 60) == alone);
    EXPECT_GT(engine.report().reused_tokens_total, 0);
  }
}

}  // namespace
}  // namespace ostro::engine
