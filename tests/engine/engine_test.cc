#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

using testing_engine::SmallEngine;

model::EngineConfig tight_config() {
  model::EngineConfig config = testing_engine::small_config();
  config.model.context = 64;
  config.limits.max_batch_size = 4;
  config.limits.max_input_len = config.limits.max_output_len = 64;
  config.limits.max_num_tokens = 16;
  return config;
}

class EngineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallEngine(tight_config()); }
  static void TearDownTestSuite() { delete small_; }

  EngineTest() { start({}); }

  void start(const RankOptions& options) {
    model::EngineWeights weights(small_->reader());
    rank_ = std::make_unique<Rank>(weights, small_->config(), small_->config().mapping, *backend_,
                                   *world_, options, Log{});
    engine_ = std::make_unique<Engine>(*rank_, small_->config().model);
  }

  // Steps until nothing is left; all events of each request in order.
  std::map<RequestId, std::vector<Event>> drain() {
    std::map<RequestId, std::vector<Event>> all;
    for (int steps = 0; !engine_->idle(); ++steps) {
      EXPECT_LT(steps, 1000) << "the engine does not come to an end";
      if (steps == 1000) break;
      for (Event& e : engine_->step()) all[e.id].push_back(std::move(e));
    }
    return all;
  }

  std::string refusal(Request request) {
    try {
      engine_->submit(std::move(request));
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "";
  }

  static SmallEngine* small_;
  std::unique_ptr<ops::Backend> backend_ = cpu::make_backend({.threads = 1, .isa = "auto"});
  std::unique_ptr<comm::Communicator> world_ = comm::make_single();
  std::unique_ptr<Rank> rank_;
  std::unique_ptr<Engine> engine_;
};

SmallEngine* EngineTest::small_ = nullptr;

std::vector<std::int32_t> prompt_of(std::size_t tokens, std::int32_t start = 1) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < tokens; ++i) ids.push_back((start + std::int32_t(i) * 13) % 97);
  return ids;
}

Request request_of(std::vector<std::int32_t> prompt, std::int64_t max_new) {
  Request r;
  r.prompt = std::move(prompt);
  r.max_new_tokens = max_new;
  return r;
}

std::vector<std::int32_t> tokens_of(const std::vector<Event>& events) {
  std::vector<std::int32_t> tokens;
  for (const Event& e : events)
    if (e.has_token) tokens.push_back(e.token);
  return tokens;
}

TEST_F(EngineTest, IsIdleWithoutRequests) {
  EXPECT_TRUE(engine_->idle());
  EXPECT_TRUE(engine_->step().empty());
}

TEST_F(EngineTest, TellsOneTokenAStepAndTheEndWithTheLast) {
  const RequestId id = engine_->submit(request_of(prompt_of(3), 5));
  EXPECT_FALSE(engine_->idle());
  for (int i = 0; i < 5; ++i) {
    const std::vector<Event> events = engine_->step();
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].id, id);
    EXPECT_TRUE(events[0].has_token);
    EXPECT_LT(events[0].log_prob, 0);
    EXPECT_EQ(events[0].finish, i == 4 ? Finish::length : Finish::none);
    EXPECT_TRUE(events[0].logits.empty());
    EXPECT_TRUE(events[0].prompt_logits.empty());
    EXPECT_TRUE(events[0].prompt_log_probs.empty());
  }
  EXPECT_TRUE(engine_->idle());
  EXPECT_TRUE(engine_->step().empty());
}

TEST_F(EngineTest, AnEndTokenIsToldAndEnds) {
  engine_->submit(request_of(prompt_of(3), 8));
  const auto free_run = tokens_of(drain().begin()->second);
  ASSERT_EQ(free_run.size(), 8u);
  Request r = request_of(prompt_of(3), 8);
  r.end_ids = {96, free_run[2]};
  engine_->submit(r);
  const auto events = drain().begin()->second;
  const auto first = std::find(free_run.begin(), free_run.end(), free_run[2]) - free_run.begin();
  EXPECT_EQ(tokens_of(events),
            std::vector<std::int32_t>(free_run.begin(), free_run.begin() + first + 1));
  EXPECT_EQ(events.back().finish, Finish::end_id);
}

TEST_F(EngineTest, AnEndTokenThatIsAlsoTheLastIsAnEndToken) {
  engine_->submit(request_of(prompt_of(3), 1));
  const auto token = tokens_of(drain().begin()->second).at(0);
  Request r = request_of(prompt_of(3), 1);
  r.end_ids = {token};
  engine_->submit(r);
  EXPECT_EQ(drain().begin()->second.back().finish, Finish::end_id);
}

TEST_F(EngineTest, MoreRequestsThanAStepTakesAllEndWithTheirOwnTokens) {
  std::map<RequestId, std::vector<std::int32_t>> alone;
  for (int i = 0; i < 11; ++i) {
    const RequestId id = engine_->submit(request_of(prompt_of(1 + std::size_t(i) * 3, i), 3 + i));
    alone[id] = tokens_of(drain()[id]);
    EXPECT_EQ(alone[id].size(), std::size_t(3 + i));
  }
  const RequestId shift = 11;
  for (int i = 0; i < 11; ++i)
    EXPECT_EQ(engine_->submit(request_of(prompt_of(1 + std::size_t(i) * 3, i), 3 + i)),
              i + 1 + shift);
  const auto together = drain();
  ASSERT_EQ(together.size(), 11u);
  for (const auto& [id, events] : together) {
    EXPECT_EQ(tokens_of(events), alone.at(id - shift)) << id;
    EXPECT_EQ(events.back().finish, Finish::length);
  }
}

TEST_F(EngineTest, CancelEndsARequestAndFreesItsRoom) {
  // A cache of one sequence: the second can only start when the first has gone.
  start({.kv_cache_tokens = 64});
  const RequestId first = engine_->submit(request_of(prompt_of(20), 44));
  const RequestId second = engine_->submit(request_of(prompt_of(10), 54));
  for (int i = 0; i < 4; ++i)
    for (const Event& e : engine_->step()) EXPECT_EQ(e.id, first);
  engine_->cancel(first);
  const auto events = drain();
  EXPECT_EQ(events.size(), 1u);
  EXPECT_EQ(tokens_of(events.at(second)).size(), 54u);
  EXPECT_TRUE(engine_->idle());
}

TEST_F(EngineTest, CancelOfWaitingUnknownAndEndedRequests) {
  start({.kv_cache_tokens = 64});
  const RequestId first = engine_->submit(request_of(prompt_of(20), 44));
  const RequestId waiting = engine_->submit(request_of(prompt_of(20), 44));
  engine_->step();
  engine_->cancel(waiting);
  engine_->cancel(12345);
  engine_->cancel(-1);
  const auto events = drain();
  EXPECT_EQ(events.count(waiting), 0u);
  EXPECT_EQ(tokens_of(events.at(first)).size(), 44u);
  engine_->cancel(first);
  EXPECT_TRUE(engine_->idle());
}

// No block leaks: the cache of one sequence serves one after the other for ever.
TEST_F(EngineTest, TheCacheIsWholeAfterEveryRequest) {
  start({.kv_cache_tokens = 64});
  for (int i = 0; i < 20; ++i) {
    const RequestId id = engine_->submit(request_of(prompt_of(30, i), 34));
    if (i % 3 == 0) {
      engine_->step();
      engine_->step();
      engine_->cancel(id);
      ASSERT_TRUE(engine_->idle());
    } else {
      ASSERT_EQ(tokens_of(drain().at(id)).size(), 34u);
    }
  }
}

TEST_F(EngineTest, LogitsOfTokensAndPromptAgreeWithTheLogProbs) {
  Request r = request_of(prompt_of(37), 4);  // three chunks
  r.logits = r.prompt_logits = r.prompt_log_probs = true;
  engine_->submit(r);
  const std::vector<Event> events = drain().begin()->second;
  std::vector<float> prompt_logits, prompt_log_probs;
  for (const Event& e : events) {
    prompt_logits.insert(prompt_logits.end(), e.prompt_logits.begin(), e.prompt_logits.end());
    prompt_log_probs.insert(prompt_log_probs.end(), e.prompt_log_probs.begin(),
                            e.prompt_log_probs.end());
    if (!e.has_token) continue;
    ASSERT_EQ(e.logits.size(), 97u);
    EXPECT_EQ(e.token, argmax(e.logits));
    EXPECT_EQ(e.log_prob, log_prob(e.logits, e.token));
  }
  ASSERT_EQ(prompt_logits.size(), 37u * 97u);
  ASSERT_EQ(prompt_log_probs.size(), 36u);
  const auto row = [&](std::size_t i) { return std::span(prompt_logits).subspan(i * 97, 97); };
  for (std::size_t i = 1; i < 37; ++i)
    EXPECT_EQ(prompt_log_probs[i - 1], log_prob(row(i - 1), r.prompt[i])) << i;
  const auto token = tokens_of(events).at(0);
  EXPECT_EQ(argmax(row(36)), token);
}

TEST_F(EngineTest, WithoutNewTokensOnlyThePromptIsScored) {
  Request r = request_of(prompt_of(20), 0);
  r.prompt_log_probs = true;
  engine_->submit(r);
  const std::vector<Event> events = drain().begin()->second;
  std::size_t scored = 0;
  for (const Event& e : events) {
    EXPECT_FALSE(e.has_token);
    scored += e.prompt_log_probs.size();
  }
  EXPECT_EQ(scored, 19u);
  EXPECT_EQ(events.back().finish, Finish::length);
}

TEST_F(EngineTest, ARequestThatFillsTheContextRuns) {
  engine_->submit(request_of(prompt_of(64), 0));
  engine_->submit(request_of(prompt_of(63), 1));
  engine_->submit(request_of(prompt_of(1), 63));
  for (const auto& [id, events] : drain())
    EXPECT_EQ(tokens_of(events).size(), id == 1 ? 0u : id == 2 ? 1u : 63u);
}

TEST_F(EngineTest, RefusesARequestThatCanNeverRun) {
  EXPECT_EQ(refusal(request_of({}, 3)), "the prompt is empty");
  EXPECT_EQ(refusal(request_of({1, 97}, 3)),
            "token 1 of the prompt is 97; the vocabulary has ids 0 to 96");
  EXPECT_EQ(refusal(request_of({-1}, 3)),
            "token 0 of the prompt is -1; the vocabulary has ids 0 to 96");
  EXPECT_EQ(refusal(request_of(prompt_of(65), 0)),
            "the prompt has 65 tokens, the context of this engine 64");
  EXPECT_EQ(refusal(request_of(prompt_of(60), 5)),
            "the prompt has 60 tokens and 5 more are asked for; the context of this engine is 64");
  EXPECT_EQ(refusal(request_of({1}, -1)), "-1 new tokens are asked for");
  Request r = request_of({1}, 1);
  r.sampling.temperature = -1;
  EXPECT_EQ(refusal(r), "temperature is -1; it must be 0 or more");
  // A refused request leaves nothing behind.
  EXPECT_TRUE(engine_->idle());
  EXPECT_EQ(engine_->submit(request_of({1}, 1)), 1);
  EXPECT_EQ(drain().size(), 1u);
}

// Nor may a number that overflows slip through.
TEST_F(EngineTest, RefusesAsManyNewTokensAsThereAreNumbers) {
  EXPECT_EQ(refusal(request_of({1, 2}, INT64_MAX)),
            "the prompt has 2 tokens and 9223372036854775807 more are asked for; the context of "
            "this engine is 64");
}

TEST_F(EngineTest, RefusesMoreThanTheCacheHolds) {
  start({.kv_cache_tokens = 32});
  EXPECT_EQ(refusal(request_of(prompt_of(30), 10)),
            "the request needs 40 tokens of KV cache, the whole cache holds 32");
  EXPECT_EQ(refusal(request_of(prompt_of(30), 3)), "");
  EXPECT_EQ(tokens_of(drain().begin()->second).size(), 3u);
}

TEST_F(EngineTest, SampledTokensDependOnTheSeedAlone) {
  const auto sampled = [&](std::uint64_t seed, int others) {
    Request r = request_of(prompt_of(9), 20);
    r.sampling = {.temperature = 1, .top_k = 0, .seed = seed};
    for (int i = 0; i < others; ++i) engine_->submit(request_of(prompt_of(5, i + 40), 7));
    const RequestId id = engine_->submit(r);
    return tokens_of(drain().at(id));
  };
  const auto tokens = sampled(3, 0);
  EXPECT_EQ(sampled(3, 6), tokens);
  EXPECT_NE(sampled(4, 0), tokens);
}

}  // namespace
}  // namespace ostro::engine
