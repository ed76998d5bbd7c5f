// batch.invariant: what a request gets depends neither on what runs beside it, nor on how its
// prompt is chunked, found in the cache or computed again after a pause. Bit for bit.
#include "engine/mixed_requests.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

using testing_engine::LoneRank;
using testing_engine::SmallEngine;

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
