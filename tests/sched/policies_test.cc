// Who starts, who pauses, who waits: priorities, users, overtaking, pauses and reuse.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "base/math.h"
#include "sched/scheduler.h"

namespace ostro::sched {
namespace {

Limits limits(std::int64_t requests = 4) {
  return {.step_tokens = 32,
          .step_requests = requests,
          .logit_rows = 32,
          .context = 64,
          .block_tokens = 4,
          .window = 0};
}

Demand demand(std::size_t prompt, std::int64_t max_new, std::string user = {},
              std::int32_t priority = 0) {
  Demand d{.prompt = std::vector<std::int32_t>(prompt, 1), .max_new_tokens = max_new};
  d.user = std::move(user);
  d.priority = priority;
  return d;
}

// Runs a step with every sequence ending after `max_new_tokens`; the ids that had a share.
std::vector<SequenceId> run_step(Scheduler& s) {
  std::vector<SequenceId> ids;
  const std::vector<Share> shares = s.next();
  if (!shares.empty()) s.complete(shares);
  for (const Share& share : shares) {
    ids.push_back(share.id);
    if (!share.last_of_prompt) continue;
    const Sequence& sequence = s.sequence(share.id);
    if (sequence.length() - sequence.prompt_tokens + 1 < sequence.max_new_tokens)
      s.append(share.id, std::int32_t(100 + share.id));
    else
      s.remove(share.id);
  }
  return ids;
}

TEST(FairQueue, OneWithAThousandWaitsForOneWithOne) {
  kv::BlockPool pool(256);
  Scheduler s(limits(2), pool);
  for (SequenceId id = 1; id <= 500; ++id) s.add(id, demand(4, 5, "many"));
  for (int i = 0; i < 3; ++i) run_step(s);
  s.add(1000, demand(4, 5, "one"));
  int steps = 0;
  while (!s.has_started(1000)) {
    run_step(s);
    ASSERT_LT(++steps, 6) << "it had to wait for more than one other sequence";
  }
}

TEST(FairQueue, UsersGetEqualTokensWhateverTheyQueue) {
  kv::BlockPool pool(256);
  Scheduler s(limits(4), pool);
  std::map<SequenceId, char> user_of;
  SequenceId next = 1;
  for (int i = 0; i < 300; ++i) user_of[next] = 'a', s.add(next++, demand(2, 4, "a"));
  for (int i = 0; i < 60; ++i) user_of[next] = 'b', s.add(next++, demand(2, 20, "b"));
  std::map<char, double> tokens;
  for (int i = 0; i < 200; ++i)
    for (const Share& share : s.next()) {
      tokens[user_of.at(share.id)] += double(share.count);
      if (!share.last_of_prompt) continue;
      const Sequence& q = s.sequence(share.id);
      if (q.length() - q.prompt_tokens + 1 < q.max_new_tokens)
        s.append(share.id, 3);
      else
        s.remove(share.id);
    }
  EXPECT_NEAR(tokens['a'] / tokens['b'], 1, 0.15);
}

// Each new user would come before one who was served already, if time did not go on for all.
TEST(FairQueue, NewUsersDoNotStarveAnOldOne) {
  kv::BlockPool pool(64);
  Scheduler s(limits(1), pool);
  s.add(1, demand(20, 1, "old"));
  while (!s.idle()) run_step(s);
  s.add(2, demand(4, 1, "old"));
  int steps = 0;
  for (SequenceId id = 100; !s.has_started(2); ++id) {
    s.add(id, demand(4, 1, text("new", id)));
    s.add(id + 100000, demand(4, 1, text("more", id)));
    bool started = false;
    for (SequenceId ran : run_step(s)) started |= ran == 2;
    if (started) break;
    ASSERT_LT(++steps, 60);
  }
}

TEST(FairQueue, ForgetsUsersThatOweNothing) {
  FairQueue queue;
  queue.push(1, demand(1, 1, "stays"));
  for (SequenceId id = 2; id < 5000; ++id) {
    queue.push(id, demand(1, 1, text("user", id)));
    Waiting w = queue.start(id, 1);
    queue.close(*w.user);
  }
  EXPECT_LT(queue.users(), 2600u);
  EXPECT_EQ(queue.size(), 1u);
  EXPECT_TRUE(queue.erase(1));
  EXPECT_FALSE(queue.erase(1));
}

TEST(SchedulerPolicies, HigherPrioritiesStartFirst) {
  kv::BlockPool pool(64);
  Scheduler s(limits(1), pool);
  s.add(1, demand(4, 1, "a", 0));
  s.add(2, demand(4, 1, "a", 5));
  s.add(3, demand(4, 1, "b", -1));
  s.add(4, demand(4, 1, "b", 5));
  std::vector<SequenceId> order;
  while (!s.idle())
    for (SequenceId id : run_step(s)) order.push_back(id);
  EXPECT_EQ(order, (std::vector<SequenceId>{2, 4, 1, 3}));
}

TEST(SchedulerPolicies, ABigOneIsOvertakenButNotForEver) {
  kv::BlockPool pool(10);
  Scheduler s(limits(4), pool);
  s.add(1, demand(8, 9));  // 4 blocks
  run_step(s);
  s.add(2, demand(30, 8));  // 10 blocks: only alone
  std::set<SequenceId> small;
  for (SequenceId id = 100; !s.has_started(2); ++id) {
    s.add(id, demand(4, 5));
    for (SequenceId ran : run_step(s))
      if (ran >= 100) small.insert(ran);
    ASSERT_LT(id, 400) << "the big one starves";
  }
  const auto overtook = std::int64_t(small.size());
  EXPECT_GT(overtook, 20) << "small ones waited for a big one that did not fit";
  EXPECT_LE(overtook, Scheduler::kMostOvertaken + 4);
}

// Sequences that are out of step hold three quarters of their lengths in the mean, so that a third
// more of them fit than at their whole lengths.
TEST(SchedulerPolicies, SequencesOutOfStepNeedNoPlaceForTheirWholeLengths) {
  constexpr std::int64_t kPrompt = 32, kNew = 33, kBlocksEach = 16;  // of 4 tokens
  kv::BlockPool pool(16 * kBlocksEach);
  Limits l = limits(64);
  l.step_tokens = 128;
  l.ridge_tokens = 128;
  l.context = 65;
  l.logit_rows = 64;
  Scheduler s(l, pool);
  std::size_t most = 0;
  for (SequenceId id = 1; id < 400; ++id) {
    // One comes in every step, then more than can start.
    for (SequenceId n = 0; n < (id < 40 ? 1 : 3); ++n) s.add(10 * id + n, demand(kPrompt, kNew));
    run_step(s);
    most = std::max(most, s.running());
    pool.check();
  }
  EXPECT_EQ(s.pauses(), 0);
  EXPECT_GE(most, 20u);
}

TEST(SchedulerPolicies, SequencesInStepAreCountedAtTheirWholeLengths) {
  kv::BlockPool pool(15 * 8 + 7);
  Limits l = limits(64);
  l.step_tokens = 1024;
  l.logit_rows = 64;
  Scheduler s(l, pool);
  for (SequenceId id = 1; id <= 20; ++id) s.add(id, demand(16, 17));
  for (int i = 0; i < 16; ++i) EXPECT_EQ(run_step(s).size(), 15u);
  EXPECT_EQ(pool.available(), 7);
}

// What others own too stays when one of them ends.
TEST(SchedulerPolicies, SharedBlocksAreNotCountedAsFreedByOneOwner) {
  kv::BlockPool pool(12);
  Limits l = limits(8);
  l.step_tokens = 64;
  Scheduler s(l, pool, {.reuse = true});
  s.add(1, demand(17, 4));  // 5 blocks, 4 of them full of the prompt
  run_step(s);
  s.add(2, demand(17, 12));  // 4 of them, and 3 of its own
  run_step(s);
  s.add(3, demand(16, 13));  // 3 of them, and 4 of its own: 5 + 3 + 4, with all of 1's to its end
  while (!s.idle()) {
    run_step(s);
    pool.check();
  }
  EXPECT_EQ(s.pauses(), 0);
}

std::int64_t prompt_tokens_of(const Scheduler& s, const std::vector<Share>& shares) {
  std::int64_t tokens = 0;
  for (const Share& share : shares)
    if (share.begin < s.sequence(share.id).prompt_tokens) tokens += share.count;
  return tokens;
}

// Prompts in each of the first steps of `count` equal sequences that all wait from the start.
std::vector<std::int64_t> prompts_a_step(Scheduler& s, SequenceId count, std::size_t steps) {
  for (SequenceId id = 1; id <= count; ++id) s.add(id, demand(32, 32));
  std::vector<std::int64_t> tokens;
  while (tokens.size() < steps) {
    const std::vector<Share> shares = s.next();
    tokens.push_back(prompt_tokens_of(s, shares));
    s.complete(shares);
    for (const Share& share : shares)
      if (share.last_of_prompt) s.append(share.id, 3);
  }
  return tokens;
}

Limits wide(std::int64_t ridge_tokens) {
  return {.step_tokens = 512,
          .step_requests = 64,
          .logit_rows = 64,
          .context = 64,
          .block_tokens = 4,
          .ridge_tokens = ridge_tokens};
}

TEST(SpreadPrompts, AllThatFitStartAtOnce) {
  kv::BlockPool pool(32 * 16);
  Scheduler s(wide(64), pool);
  // In the second step 16 generate.
  EXPECT_EQ(prompts_a_step(s, 32, 3), (std::vector<std::int64_t>{512, 496, 16}));
}

TEST(SpreadPrompts, UpToTheRidgeWhileMoreWait) {
  kv::BlockPool pool(32 * 16);
  Scheduler s(wide(96), pool);
  // Nothing generates in the first step; then 16, 18 and 20 do.
  EXPECT_EQ(prompts_a_step(s, 33, 4), (std::vector<std::int64_t>{512, 80, 78, 76}));
}

// Beside the first 16 there is room for 512 tokens of prompts. Sequences run for 32 steps: as much
// as keeps one and a half times 32 of them running is 48 tokens a step.
TEST(SpreadPrompts, AboveTheRidgeAsManyAsKeepTheRoomFull) {
  kv::BlockPool pool(32 * 16);
  Scheduler s(wide(0), pool);
  EXPECT_EQ(prompts_a_step(s, 64, 4), (std::vector<std::int64_t>{512, 48, 48, 48}));
}

TEST(SpreadPrompts, NeverWithoutARidge) {
  kv::BlockPool pool(32 * 16);
  Scheduler s(wide(-1), pool);
  EXPECT_EQ(prompts_a_step(s, 64, 2), (std::vector<std::int64_t>{512, 496}));
}

// The others behind it, whose short prompts set the pace, start once it is computed.
TEST(SpreadPrompts, ALongPromptThatHasBegunTakesFewSteps) {
  kv::BlockPool pool(1024);
  Limits l = wide(0);
  l.context = 2048;
  Scheduler s(l, pool);
  s.add(1, demand(4, 32));
  run_step(s);
  s.add(2, demand(1600, 32));
  for (SequenceId id = 3; id <= 300; ++id) s.add(id, demand(4, 512));
  int steps = 0;
  for (; s.running() < 3; ++steps) {
    ASSERT_LT(steps, 80) << "1600 tokens in sixteenths of what is left";
    run_step(s);
  }
  EXPECT_GT(steps, 3) << "of 512 tokens each";
}

TEST(SpreadPrompts, TheLengthsOfThoseThatEndedCount) {
  kv::BlockPool pool(1024 * 16);
  Limits l = wide(0);
  l.step_requests = 512;
  l.logit_rows = 512;
  const auto third_step = [&](bool end_early) {
    Scheduler s(l, pool);
    s.add(5000, demand(4, 32));
    s.complete(s.next());
    if (end_early)
      s.remove(5000);
    else
      s.append(5000, 3);
    const std::int64_t tokens = prompts_a_step(s, 2000, 3).back();
    for (SequenceId id = 1; id <= 5000; ++id) s.remove(id);
    return tokens;
  };
  // Room for 512 at once, with 16384 tokens of prompts.
  EXPECT_LT(third_step(false), 512);
  EXPECT_EQ(third_step(true), 512 - 31) << "of one token each: the step is full";
}

// Equal ones that all wait from the start would end together, each time.
TEST(SpreadPrompts, BringEqualSequencesOutOfStep) {
  for (const std::int64_t ridge : {std::int64_t{0}, std::int64_t{64}}) {
    kv::BlockPool pool(32 * 16);
    Scheduler s(wide(ridge), pool);
    for (SequenceId id = 1; id <= 600; ++id) s.add(id, demand(32, 32));
    std::size_t most = 0;
    int steps = 0;
    for (; !s.idle(); ++steps) {
      run_step(s);
      most = std::max(most, s.running());
      pool.check();
    }
    EXPECT_GE(most, 38u) << "32 fit at their whole lengths; ridge " << ridge;
    EXPECT_LT(steps, 600 / 32 * 32) << "ridge " << ridge;
    EXPECT_EQ(s.pauses(), 0);
  }
}

TEST(SchedulerPolicies, PausesTheYoungestAndResumesItFirst) {
  kv::BlockPool pool(6);
  Scheduler s(limits(4), pool, {.capacity = Capacity::max_utilization});
  s.add(1, demand(8, 13));  // grows to 5 blocks
  s.add(2, demand(4, 13));
  EXPECT_EQ(run_step(s), (std::vector<SequenceId>{1, 2}))
      << "both start, though 9 blocks are wanted";
  while (s.running() == 2) run_step(s);
  EXPECT_EQ(s.pauses(), 1);
  EXPECT_EQ(s.sequence(2).pauses, 1);
  EXPECT_EQ(s.sequence(2).blocks.held(), 0);
  const std::int64_t known = s.sequence(2).length();
  EXPECT_GT(known, 4);
  s.add(3, demand(1, 1));
  while (s.has_started(1)) run_step(s);
  EXPECT_FALSE(s.has_started(3)) << "the paused one comes first";
  const auto shares = s.next();
  ASSERT_GE(shares.size(), 1u);
  EXPECT_EQ(shares[0].id, 2);
  EXPECT_EQ(shares[0].begin, 0);
  EXPECT_EQ(shares[0].count, known);
  EXPECT_EQ(shares[0].logits, 1);
  EXPECT_TRUE(shares[0].last_of_prompt);
}

TEST(SchedulerPolicies, ReusesWhatTheSameStepComputes) {
  kv::BlockPool pool(32);
  Scheduler s(limits(4), pool, {.reuse = true});
  for (SequenceId id = 1; id <= 3; ++id) s.add(id, demand(10, 4));
  const auto shares = s.next();
  ASSERT_EQ(shares.size(), 3u);
  EXPECT_EQ(shares[0].count, 10);
  EXPECT_EQ(shares[1].begin, 8);
  EXPECT_EQ(shares[2].count, 2);
  EXPECT_EQ(s.reused(), 16);
  EXPECT_EQ(pool.total() - pool.available(), 2 + 3);
}

TEST(SchedulerPolicies, ALonePromptThatIsKnownWhollyComputesItsLastBlock) {
  kv::BlockPool pool(32);
  Scheduler s(limits(4), pool, {.reuse = true});
  s.add(1, demand(8, 1));
  run_step(s);
  s.add(2, demand(8, 1));
  const auto shares = s.next();
  ASSERT_EQ(shares.size(), 1u);
  EXPECT_EQ(shares[0].begin, 4);
  EXPECT_EQ(shares[0].count, 4);
}

TEST(SchedulerPolicies, PromptLogitsAreComputedThoughTheBlocksAreKnown) {
  kv::BlockPool pool(32);
  Scheduler s(limits(4), pool, {.reuse = true});
  s.add(1, demand(8, 1));
  run_step(s);
  Demand d = demand(8, 1);
  d.prompt_logits = true;
  s.add(2, d);
  const auto shares = s.next();
  EXPECT_EQ(shares[0].begin, 0);
  EXPECT_EQ(shares[0].logits, 8);
}

struct Trace {
  Capacity capacity;
  bool reuse;
  std::int64_t window;
  std::int64_t steps = 1;  // in flight
  std::int64_t requests = 5;
  std::int64_t blocks = 20;
};

// Sequences of all sorts come, are cancelled, and end. At each step the limits hold, every block
// has as many owners as sequences hold it, every position that a query sees has a block, and the
// positions of a sequence are computed in order, each once but for pauses. All come to an end.
void random_trace(const Trace& trace, int operations) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  Limits l{.step_tokens = std::max<std::int64_t>(12, trace.requests),
           .step_requests = trace.requests,
           .logit_rows = trace.requests + 1,
           .context = 60,
           .block_tokens = 4,
           .window = trace.window,
           .steps = trace.steps,
           .ridge_tokens = std::int64_t(rng() % 2 * 9)};
  kv::BlockPool pool(trace.window > 0 ? 8 : trace.blocks);
  Scheduler s(l, pool, {.capacity = trace.capacity, .reuse = trace.reuse});
  struct Live {
    std::int64_t computed = 0;  // highest position so far
    std::int64_t rows = 0;      // prompt rows with logits
    std::int64_t new_left = 0;
    bool prompt_logits = false;
    int since = 0;
  };
  std::map<SequenceId, Live> live;
  std::deque<std::vector<Share>> in_flight;
  SequenceId next_id = 1;
  std::int64_t ended = 0;
  int longest = 0;
  bool beyond_whole_lengths = false;
  const auto finish = [&](SequenceId id) {
    s.remove(id);
    live.erase(id);
  };
  for (int i = 0; i < operations; ++i) {
    const bool draining = i > operations - operations / 20;
    if (!draining && rng() % 3 == 0 && std::int64_t(live.size()) < 2 * trace.requests + 2) {
      Demand d;
      for (std::size_t n = 1 + rng() % 30; n > 0; --n) d.prompt.push_back(std::int32_t(rng() % 2));
      d.max_new_tokens = std::int64_t(1 + rng() % 14);
      d.prompt_logits = rng() % 5 == 0;
      d.priority = std::int32_t(rng() % 3 == 0);
      d.user = std::string(1, char('a' + rng() % 3));
      d.salt = rng() % 4 ? "" : "salt";
      live[next_id] = {0, 0, d.max_new_tokens, d.prompt_logits, i};
      s.add(next_id++, d);
    }
    if (rng() % 40 == 0 && !live.empty()) {
      auto it = live.begin();
      std::advance(it, std::ptrdiff_t(rng() % live.size()));
      finish(it->first);
    }
    const std::vector<Share> shares = s.next();
    ASSERT_TRUE(!shares.empty() || live.empty() || !in_flight.empty());
    std::int64_t tokens = 0, rows = 0;
    std::map<kv::BlockId, std::int32_t> owners;
    for (const auto& [id, x] : live)
      if (s.has_started(id))
        for (kv::BlockId b : s.sequence(id).blocks.blocks())
          if (b >= 0) ++owners[b];
    for (const auto& [block, count] : owners) ASSERT_EQ(pool.owners(block), count);
    ASSERT_EQ(std::int64_t(owners.size()) + pool.available(), pool.total());
    pool.check();
    std::int64_t whole = 0;
    for (const auto& [id, x] : live)
      if (s.has_started(id)) whole += s.sequence(id).most_blocks;
    beyond_whole_lengths |= whole > pool.total();
    for (const Share& share : shares) {
      tokens += share.count;
      rows += share.logits;
      Live& x = live.at(share.id);
      const Sequence& q = s.sequence(share.id);
      ASSERT_GT(share.count, 0);
      ASSERT_EQ(q.computed, share.begin + share.count);
      ASSERT_TRUE(q.pauses > 0 || trace.reuse || share.begin == x.computed);
      if (x.prompt_logits && x.new_left == q.max_new_tokens) x.rows += share.logits;
      x.computed = std::max(x.computed, q.computed);
      const std::int64_t first =
          trace.window > 0 ? std::max<std::int64_t>(0, share.begin - trace.window + 1) : 0;
      for (std::int64_t p = first; p < q.computed; ++p)
        ASSERT_GE(q.blocks.blocks().at(std::size_t(p / l.block_tokens)), 0);
    }
    ASSERT_LE(tokens, l.step_tokens);
    ASSERT_LE(rows, l.logit_rows);
    ASSERT_LE(std::int64_t(shares.size()), l.step_requests);
    for (const auto& step : in_flight)
      for (const Share& share : step)
        ASSERT_TRUE(!share.last_of_prompt ||
                    std::ranges::find(shares, share.id, &Share::id) == shares.end());
    if (!shares.empty()) in_flight.push_back(shares);
    if (in_flight.empty() ||
        (!shares.empty() && std::int64_t(in_flight.size()) < trace.steps && rng() % 8 > 0))
      continue;
    const std::vector<Share> done = std::move(in_flight.front());
    in_flight.pop_front();
    s.complete(done);
    for (const Share& share : done) {
      if (!share.last_of_prompt || !live.contains(share.id)) continue;
      Live& x = live.at(share.id);
      const Sequence& q = s.sequence(share.id);
      const bool first_token = x.new_left == q.max_new_tokens;
      ASSERT_TRUE(!first_token || x.rows == (x.prompt_logits ? q.prompt_tokens : 0)) << x.rows;
      if (--x.new_left > 0) {
        s.append(share.id, std::int32_t(rng() % 2));
        continue;
      }
      longest = std::max(longest, i - x.since);
      ++ended;
      finish(share.id);
    }
  }
  for (const auto& step : in_flight) s.complete(step);
  EXPECT_TRUE(live.empty()) << live.size() << " sequences did not come to an end";
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(pool.available(), pool.total());
  EXPECT_GT(ended, operations / 40);
  EXPECT_EQ(s.reused() > 0, trace.reuse);
  EXPECT_EQ(s.pauses() > 0, trace.capacity == Capacity::max_utilization);
  EXPECT_LT(longest, 3000);
  const bool no_evict = trace.capacity == Capacity::guaranteed_no_evict;
  EXPECT_TRUE(beyond_whole_lengths || !no_evict || trace.window > 0 || trace.steps > 1);
}

TEST(SchedulerTrace, NoEvict) { random_trace({Capacity::guaranteed_no_evict, false, 0}, 100000); }
TEST(SchedulerTrace, NoEvictMany) {
  random_trace({.capacity = Capacity::guaranteed_no_evict,
                .reuse = false,
                .window = 0,
                .requests = 20,
                .blocks = 40},
               100000);
}
TEST(SchedulerTrace, NoEvictManyReuse) {
  random_trace({.capacity = Capacity::guaranteed_no_evict,
                .reuse = true,
                .window = 0,
                .requests = 20,
                .blocks = 36},
               100000);
}
TEST(SchedulerTrace, NoEvictReuse) {
  random_trace({Capacity::guaranteed_no_evict, true, 0}, 100000);
}
TEST(SchedulerTrace, NoEvictReuseWindow) {
  random_trace({Capacity::guaranteed_no_evict, true, 9}, 100000);
}
TEST(SchedulerTrace, Utilization) { random_trace({Capacity::max_utilization, false, 0}, 100000); }
TEST(SchedulerTrace, UtilizationReuse) {
  random_trace({Capacity::max_utilization, true, 0}, 100000);
}
TEST(SchedulerTrace, UtilizationReuseWindow) {
  random_trace({Capacity::max_utilization, true, 9}, 100000);
}
TEST(SchedulerTrace, NoEvictReuseWindowTwoSteps) {
  random_trace({Capacity::guaranteed_no_evict, true, 9, 2}, 100000);
}
TEST(SchedulerTrace, UtilizationReuseFourSteps) {
  random_trace({Capacity::max_utilization, true, 0, 4}, 100000);
}

}  // namespace
}  // namespace ostro::sched
