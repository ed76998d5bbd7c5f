// Several sequences of a prompt, stop sequences, alternatives: what the engine adds to a token.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/engine.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

using testing_engine::LoneRank;
using testing_engine::SmallEngine;

class SequencesTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallEngine; }
  static void TearDownTestSuite() { delete small_; }

  std::vector<Event> run(Request request) {
    engine_.submit(std::move(request));
    std::vector<Event> events;
    while (!engine_.idle())
      for (Event& e : engine_.step()) events.push_back(std::move(e));
    return events;
  }

  static std::vector<std::int32_t> tokens(const std::vector<Event>& events, std::int32_t sequence) {
    std::vector<std::int32_t> ids;
    for (const Event& e : events)
      if (e.sequence == sequence && e.has_token) ids.push_back(e.token);
    return ids;
  }

  static SmallEngine* small_;
  LoneRank lone_{*small_};
  Engine engine_{lone_.rank, small_->config().model};
};
SmallEngine* SequencesTest::small_ = nullptr;

const std::vector<std::int32_t> kPrompt{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};

TEST_F(SequencesTest, EachDrawsWithASeedOfItsOwnAndThePromptIsComputedOnce) {
  Request r{.prompt = kPrompt, .max_new_tokens = 10};
  r.sampling.top_k = 0;
  r.sampling.seed = 7;
  const std::vector<std::int32_t> alone = tokens(run(r), 0);
  Engine fresh(lone_.rank, small_->config().model);
  r.sequences = 4;
  fresh.submit(r);
  std::vector<Event> events = fresh.step();
  EXPECT_EQ(fresh.report().prompt_tokens, 14 + 3 * 6) << "8 of the 14 lie in a full block";
  EXPECT_EQ(fresh.report().started.size(), 1u);
  while (!fresh.idle())
    for (Event& e : fresh.step()) events.push_back(std::move(e));
  EXPECT_EQ(tokens(events, 0), alone);
  for (std::int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(tokens(events, i).size(), 10u);
    for (std::int32_t j = 0; j < i; ++j) EXPECT_NE(tokens(events, i), tokens(events, j));
  }
  std::size_t last = 0;
  for (const Event& e : events) last += e.last;
  EXPECT_EQ(last, 1u);
  EXPECT_TRUE(events.back().last);
  EXPECT_EQ(events.back().usage.output_tokens, 40);
  EXPECT_EQ(tokens(run(r), 2), tokens(events, 2)) << "the seed reproduces every sequence";
}

TEST_F(SequencesTest, StopSequencesEndAnOutputAfterMinTokens) {
  const Request plain{.prompt = kPrompt, .max_new_tokens = 12};
  const std::vector<std::int32_t> all = tokens(run(plain), 0);
  Request r = plain;
  r.stop_sequences = {{96, 96, 95}, {all[3], all[4]}};
  std::vector<Event> events = run(r);
  EXPECT_EQ(tokens(events, 0), std::vector<std::int32_t>(all.begin(), all.begin() + 5));
  EXPECT_EQ(events.back().finish, Finish::stop);
  EXPECT_EQ(events.back().stop_index, 1u);
  r.sampling.min_tokens = 12;
  EXPECT_EQ(tokens(run(r), 0).size(), 12u);
}

TEST_F(SequencesTest, MinTokensKeepsTheEndAway) {
  const std::vector<std::int32_t> all = tokens(run({.prompt = kPrompt, .max_new_tokens = 12}), 0);
  Request r{.prompt = kPrompt, .max_new_tokens = 12};
  r.end_ids = {all[2]};
  EXPECT_EQ(run(r).back().finish, Finish::end_id);
  r.sampling.min_tokens = 6;
  const std::vector<Event> events = run(r);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_NE(events[i].token, all[2]);
}

TEST_F(SequencesTest, AlternativesAreTheMostLikelyTokens) {
  Request r{.prompt = kPrompt, .max_new_tokens = 3};
  r.logits = true;
  r.alternatives = 5;
  r.prompt_log_probs = true;
  r.prompt_alternatives = 2;
  const std::vector<Event> events = run(r);
  EXPECT_EQ(events[0].prompt_log_probs.size(), 13u);
  ASSERT_EQ(events[0].prompt_alternatives.size(), 13u);
  EXPECT_EQ(events[0].prompt_alternatives[0].size(), 2u);
  for (const Event& e : events) {
    ASSERT_EQ(e.alternatives.size(), 5u);
    EXPECT_EQ(e.alternatives[0].token, e.token);
    EXPECT_EQ(e.alternatives[0].log_prob, e.log_prob);
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(e.alternatives[i].log_prob, log_prob(e.logits, e.alternatives[i].token));
      EXPECT_LE(e.alternatives[i].log_prob, e.alternatives[i == 0 ? 0 : i - 1].log_prob);
    }
  }
}

TEST_F(SequencesTest, LogProbsAreTheModelsWhateverTheRules) {
  Request r{.prompt = kPrompt, .max_new_tokens = 4};
  r.logits = true;
  r.sampling.logit_bias = {{42, 1000}};
  r.sampling.temperature = 0.5f;
  for (const Event& e : run(r)) {
    EXPECT_EQ(e.token, 42);
    EXPECT_EQ(e.log_prob, log_prob(e.logits, 42));
  }
}

TEST_F(SequencesTest, CancelEndsAllSequences) {
  Request r{.prompt = kPrompt, .max_new_tokens = 40, .sequences = 5};
  const RequestId id = engine_.submit(r);
  for (int i = 0; i < 5; ++i) engine_.step();
  EXPECT_EQ(engine_.usage(id).output_tokens, 25);
  engine_.cancel(id);
  EXPECT_TRUE(engine_.idle());
  EXPECT_EQ(engine_.pool().available(), engine_.pool().total());
}

}  // namespace
}  // namespace ostro::engine
