#include "sched/scheduler.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace ostro::sched {
namespace {

Limits small_limits() {
  return {.step_tokens = 8,
          .step_requests = 3,
          .logit_rows = 4,
          .context = 64,
          .block_tokens = 4,
          .window = 0};
}

Demand prompt_of(std::size_t tokens, std::int64_t max_new, bool prompt_logits = false) {
  return {.prompt = std::vector<std::int32_t>(tokens, 7),
          .max_new_tokens = max_new,
          .prompt_logits = prompt_logits};
}

std::string message(Scheduler& s, Demand demand) {
  try {
    s.add(99, std::move(demand));
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

TEST(Scheduler, ChunksAPromptAndGivesRunningStreamsTheirTokenFirst) {
  kv::BlockPool pool(64);
  Scheduler s(small_limits(), pool);
  s.add(1, prompt_of(3, 5));
  auto step = s.next();
  ASSERT_EQ(step.size(), 1u);
  EXPECT_EQ(step[0].count, 3);
  EXPECT_TRUE(step[0].last_of_prompt);
  s.append(1, 11);

  s.add(2, prompt_of(20, 4));
  step = s.next();
  ASSERT_EQ(step.size(), 2u);
  EXPECT_EQ(step[0].id, 1);
  EXPECT_EQ(step[0].count, 1);
  EXPECT_EQ(step[0].logits, 1);
  EXPECT_EQ(step[1].id, 2);
  EXPECT_EQ(step[1].begin, 0);
  EXPECT_EQ(step[1].count, 7);
  EXPECT_EQ(step[1].logits, 0);
  EXPECT_FALSE(step[1].last_of_prompt);
  s.append(1, 12);

  step = s.next();
  EXPECT_EQ(step[1].begin, 7);
  EXPECT_EQ(step[1].count, 7);
  s.append(1, 13);
  step = s.next();
  EXPECT_EQ(step[1].count, 6);
  EXPECT_EQ(step[1].logits, 1);
  EXPECT_TRUE(step[1].last_of_prompt);
}

TEST(Scheduler, LimitsPromptsWhileASequenceGenerates) {
  kv::BlockPool pool(64);
  Scheduler s(small_limits(), pool);
  s.add(1, prompt_of(6, 5));
  auto step = s.next(2);
  EXPECT_EQ(step.at(0).count, 6) << "nobody waits for a token";
  s.append(1, 11);

  s.add(2, prompt_of(3, 4));
  s.add(3, prompt_of(9, 4));
  step = s.next(5);
  ASSERT_EQ(step.size(), 3u);
  EXPECT_EQ(step[0].count, 1) << "not a token of a prompt";
  EXPECT_EQ(step[1].count, 3);
  EXPECT_EQ(step[2].count, 2) << "all prompts together";
  s.append(1, 12);
  s.append(2, 12);
  step = s.next(1);
  ASSERT_EQ(step.size(), 3u);
  EXPECT_EQ(step[2].count, 1);
  s.remove(1);
  s.remove(2);
  EXPECT_EQ(s.next(1).at(0).count, 6) << "nobody waits any more";
}

TEST(Scheduler, ChunksByLogitRowsWhereAllAreWanted) {
  kv::BlockPool pool(64);
  Scheduler s(small_limits(), pool);
  s.add(1, prompt_of(10, 0, true));
  std::vector<std::int64_t> counts;
  for (auto step = s.next(); !step.empty(); step = s.next()) {
    EXPECT_EQ(step[0].logits, step[0].count);
    counts.push_back(step[0].count);
  }
  EXPECT_EQ(counts, (std::vector<std::int64_t>{4, 4, 2}));
}

TEST(Scheduler, AdmitsOnlyWhatCanEndWithoutEviction) {
  kv::BlockPool pool(6);  // 24 tokens
  Scheduler s(small_limits(), pool);
  s.add(1, prompt_of(4, 9));  // 12 positions: 3 blocks
  s.add(2, prompt_of(4, 9));
  s.add(3, prompt_of(4, 5));
  EXPECT_EQ(s.next().size(), 2u);
  EXPECT_EQ(s.waiting(), 1u);
  s.remove(1);
  s.append(2, 5);
  const auto step = s.next();
  ASSERT_EQ(step.size(), 2u);
  EXPECT_EQ(step[1].id, 3);
  s.remove(2);
  s.remove(3);
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(pool.free(), pool.total());
}

TEST(Scheduler, SaysWhyARequestCanNeverRun) {
  kv::BlockPool pool(6);
  Scheduler s(small_limits(), pool);
  EXPECT_EQ(message(s, prompt_of(0, 1)), "the prompt is empty");
  EXPECT_EQ(message(s, prompt_of(65, 1)),
            "the prompt has 65 tokens, the context of this engine 64");
  EXPECT_EQ(message(s, prompt_of(60, 5)),
            "the prompt has 60 tokens and 5 more are asked for; the context of this engine is 64");
  EXPECT_EQ(message(s, prompt_of(20, 10)),
            "the request needs 32 tokens of KV cache, the whole cache holds 24");
  EXPECT_TRUE(s.idle());
}

TEST(Scheduler, AWaitingSequenceCanBeRemoved) {
  kv::BlockPool pool(6);
  Scheduler s(small_limits(), pool);
  s.add(1, prompt_of(20, 1));
  s.add(2, prompt_of(20, 1));
  s.next();
  s.remove(2);
  EXPECT_EQ(s.waiting(), 0u);
  s.remove(12345);
  s.remove(1);
  EXPECT_TRUE(s.idle());
}

// Random requests come and go under tiny limits: no step exceeds them, every sequence ends, and
// the pool is whole afterwards.
void random_trace(std::int64_t window) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  Limits limits = small_limits();
  limits.window = window;
  kv::BlockPool pool(12);
  Scheduler s(limits, pool);
  std::map<SequenceId, std::int64_t> left;  // tokens still to be generated
  SequenceId next_id = 1;
  std::size_t ended = 0;
  for (int i = 0; i < 20000; ++i) {
    if (rng() % 3 == 0 && left.size() < 8) {
      const std::int64_t most_new = 1 + std::int64_t(rng() % 12);
      s.add(next_id, prompt_of(1 + rng() % 30, most_new, rng() % 4 == 0));
      left[next_id++] = most_new;
    }
    if (rng() % 50 == 0 && !left.empty()) {
      const SequenceId id = left.begin()->first;
      s.remove(id);
      left.erase(id);
    }
    const auto step = s.next();
    std::int64_t tokens = 0, rows = 0;
    for (const Share& share : step) {
      tokens += share.count;
      rows += share.logits;
      const Sequence& sequence = s.sequence(share.id);
      const std::int64_t first_seen =
          window > 0 ? std::max<std::int64_t>(0, share.begin - window + 1) : 0;
      for (std::int64_t p = first_seen; p < share.begin + share.count; ++p)
        ASSERT_GE(sequence.blocks.blocks().at(std::size_t(p / limits.block_tokens)), 0);
    }
    ASSERT_LE(tokens, limits.step_tokens);
    ASSERT_LE(rows, limits.logit_rows);
    ASSERT_LE(std::int64_t(step.size()), limits.step_requests);
    ASSERT_TRUE(!step.empty() || left.empty());
    for (const Share& share : step) {
      if (!share.last_of_prompt) continue;
      if (--left[share.id] > 0) {
        s.append(share.id, 1);
        continue;
      }
      s.remove(share.id);
      left.erase(share.id);
      ++ended;
    }
  }
  for (const auto& [id, n] : left) s.remove(id);
  EXPECT_GT(ended, 500u);
  EXPECT_EQ(pool.free(), pool.total());
  EXPECT_TRUE(s.idle());
}

TEST(Scheduler, RandomTraces) { random_trace(0); }
TEST(Scheduler, RandomTracesWithASlidingWindow) { random_trace(10); }

}  // namespace
}  // namespace ostro::sched
