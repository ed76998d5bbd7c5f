// Sequences of several branches: shared blocks, copies on write, pauses as one.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

#include "base/error.h"
#include "base/math.h"
#include "sched/scheduler.h"

namespace ostro::sched {
namespace {

Limits limits() {
  return {.step_tokens = 16,
          .step_requests = 6,
          .logit_rows = 16,
          .context = 64,
          .block_tokens = 4,
          .window = 0};
}

Demand wide(std::size_t prompt, std::int64_t max_new, std::int32_t width) {
  Demand d{.prompt = std::vector<std::int32_t>(prompt, 1), .max_new_tokens = max_new};
  d.width = width;
  return d;
}

// A step that is complete before another is formed.
std::vector<Share> compute(Scheduler& s) {
  const std::vector<Share> shares = s.next();
  if (!shares.empty()) s.complete(shares);
  return shares;
}

TEST(Fork, SharesFullBlocksAndCopiesTheLastOneForAllButOne) {
  kv::BlockPool pool(32);
  Scheduler s(limits(), pool);
  s.add(1, wide(10, 5, 3));
  ASSERT_EQ(compute(s).size(), 1u) << "the prompt is computed once";
  EXPECT_EQ(pool.total() - pool.available(), 3);
  s.fork(1, std::vector<Child>{{0, 5}, {0, 6}, {0, 7}});
  EXPECT_EQ(pool.total() - pool.available(), 3);

  const auto shares = compute(s);
  ASSERT_EQ(shares.size(), 3u);
  for (std::int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(shares[std::size_t(i)].branch, i);
    EXPECT_EQ(shares[std::size_t(i)].begin, 10);
    EXPECT_EQ(shares[std::size_t(i)].logits, 1);
    EXPECT_EQ(s.sequence(1).branch(std::size_t(i)).tokens.back(), 5 + i);
  }
  EXPECT_EQ(pool.total() - pool.available(), 2 + 3);
  const Sequence& q = s.sequence(1);
  ASSERT_EQ(s.copies().size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(s.copies()[i].from, q.branch(2).blocks.blocks()[2]);
    EXPECT_EQ(s.copies()[i].to, q.branch(i).blocks.blocks()[2]);
  }

  // Branch 1 goes on twice, the others end: their blocks are free at once.
  s.fork(1, std::vector<Child>{{1, 8}, {1, 9}});
  EXPECT_EQ(pool.total() - pool.available(), 3);
  EXPECT_EQ(compute(s).size(), 2u);
  EXPECT_EQ(s.copies().size(), 1u);
  s.fork(1, std::vector<Child>{{0, 8}, {1, 9}});
  EXPECT_EQ(compute(s).size(), 2u);
  EXPECT_TRUE(s.copies().empty()) << "a new block, and nothing is shared in it";
  EXPECT_EQ(pool.total() - pool.available(), 2 + 2 * 2);
  s.remove(1);
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(pool.available(), pool.total());
}

TEST(Fork, StartsWhenAllBranchesHaveAPlace) {
  kv::BlockPool pool(10);
  Scheduler s(limits(), pool);
  s.add(1, wide(6, 7, 4));  // 1 block for all and 2 for each: 9
  s.add(2, wide(4, 5, 1));  // 2 blocks
  compute(s);
  EXPECT_TRUE(s.has_started(1));
  EXPECT_FALSE(s.has_started(2));
  EXPECT_EQ(s.running(), 4u);
  s.remove(1);
  compute(s);
  EXPECT_TRUE(s.has_started(2));
}

TEST(Fork, CountsAsItsWidthInAStep) {
  kv::BlockPool pool(64);
  Scheduler s(limits(), pool);
  s.add(1, wide(4, 5, 4));
  s.add(2, wide(4, 5, 3));
  s.add(3, wide(4, 5, 2));
  compute(s);
  EXPECT_TRUE(s.has_started(1));
  EXPECT_FALSE(s.has_started(2)) << "7 branches, and a step has 6";
  EXPECT_TRUE(s.has_started(3));
}

TEST(Fork, SaysWhyItCanNeverRun) {
  kv::BlockPool pool(8);
  const Scheduler s(limits(), pool);
  const auto message = [&](std::int64_t prompt, std::int64_t max_new, std::int32_t width) {
    try {
      s.check(prompt, max_new, width);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(6, 7, 3), "");
  EXPECT_EQ(message(6, 7, 4), "the request needs 36 tokens of KV cache, the whole cache holds 32");
  EXPECT_EQ(message(1, 1, 7), "the request has 7 beams, a step of this engine 6 sequences");
}

TEST(Fork, PausesAsOneAndSharesItsPromptAgainAfterwards) {
  kv::BlockPool pool(9);
  Scheduler s(limits(), pool, {.capacity = Capacity::max_utilization});
  s.add(1, wide(12, 13, 1));  // grows to 6 blocks
  compute(s);
  s.append(1, 3);
  s.add(2, wide(9, 8, 2));  // 2 blocks for both and 2 for each
  compute(s);
  s.append(1, 3);
  s.fork(2, std::vector<Child>{{0, 5}, {0, 6}});
  while (s.sequence(2).pauses == 0) {
    bool decoded = false;
    for (const Share& share : compute(s)) {
      if (share.id == 1) s.append(1, 3);
      decoded |= share.id == 2;
    }
    if (decoded) s.fork(2, std::vector<Child>{{0, 7}, {1, 8}});
  }
  const Sequence& q = s.sequence(2);
  EXPECT_EQ(q.branch(0).blocks.held() + q.branch(1).blocks.held(), 0);
  const std::int64_t length = q.length();
  s.remove(1);

  auto shares = compute(s);
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_EQ(shares[0].branch, 0);
  EXPECT_EQ(shares[0].begin, 0);
  EXPECT_EQ(shares[0].count, 8);
  EXPECT_EQ(shares[1].branch, 1);
  EXPECT_EQ(shares[1].begin, 8);
  EXPECT_EQ(shares[1].count, length - 1 - 8);
  EXPECT_EQ(shares[0].logits + shares[1].logits, 0);
  shares = compute(s);
  ASSERT_EQ(shares.size(), 1u);
  EXPECT_EQ(shares[0].branch, 0);
  shares = compute(s);
  ASSERT_EQ(shares.size(), 2u) << "the last tokens of both, in one step";
  for (const Share& share : shares) {
    EXPECT_EQ(share.begin, length - 1);
    EXPECT_EQ(share.logits, 1);
    EXPECT_TRUE(share.last_of_prompt);
  }
}

// Sequences of one branch and of several come, fork, are cancelled and end, over a model of the
// memory: each slot of a block holds the tokens of a beginning. At every step the limits hold, the
// branches that choose tokens are all there, what is written belongs to one branch alone, what is
// read is what the branch's tokens say, and every block has as many owners as branches hold it.
// Steps are computed in the order in which they are formed, up to `steps` of them before one is
// complete.
void random_trace(Capacity capacity, bool reuse, std::int64_t window, int operations,
                  std::int64_t steps = 1) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  Limits l = limits();
  l.step_tokens = 20;
  l.step_requests = 12;
  l.logit_rows = 12;
  l.window = window;
  l.steps = steps;
  kv::BlockPool pool(20);
  Scheduler s(l, pool, {.capacity = capacity, .reuse = reuse});
  using Beginning = std::vector<std::int32_t>;
  std::map<kv::BlockId, std::vector<Beginning>> memory;
  for (kv::BlockId b = 0; b < pool.total(); ++b) memory[b].resize(4);
  std::map<SequenceId, std::int64_t> left;  // tokens still to be generated
  std::deque<std::vector<Share>> in_flight;
  SequenceId next_id = 1;
  std::int64_t ended = 0, copied = 0, forked = 0;
  const auto finish = [&](SequenceId id) {
    s.remove(id);
    left.erase(id);
  };
  for (int i = 0; i < operations; ++i) {
    const bool draining = i > operations - operations / 20;
    if (!draining && rng() % 2 == 0 && left.size() < 12) {
      Demand d;
      const bool reads = rng() % 3 == 0;  // rather than writes
      for (std::size_t n = 1 + rng() % (reads ? 20 : 8); n > 0; --n)
        d.prompt.push_back(std::int32_t(rng() % 2));
      d.max_new_tokens = std::int64_t(1 + rng() % (reads ? 6 : 22));
      d.prompt_logits = rng() % 6 == 0;
      d.width = rng() % 3 == 0 ? 1 : std::int32_t(2 + rng() % 2);
      left[next_id] = d.max_new_tokens;
      s.add(next_id++, d);
    }
    if (rng() % 40 == 0 && !left.empty()) {
      auto it = left.begin();
      std::advance(it, std::ptrdiff_t(rng() % left.size()));
      finish(it->first);
    }
    const std::vector<Share> shares = s.next();
    ASSERT_TRUE(!shares.empty() || left.empty() || !in_flight.empty());

    std::map<kv::BlockId, std::int32_t> owners;
    for (const auto& [id, unused] : left)
      for (std::size_t b = 0; s.has_started(id) && b < s.sequence(id).branches(); ++b)
        for (kv::BlockId block : s.sequence(id).branch(b).blocks.blocks())
          if (block >= 0) ++owners[block];
    for (const auto& [block, count] : owners) ASSERT_EQ(pool.owners(block), count);
    ASSERT_EQ(std::int64_t(owners.size()) + pool.available(), pool.total());
    pool.check();

    ASSERT_TRUE(!shares.empty() || s.copies().empty());
    copied += std::int64_t(s.copies().size());
    for (const kv::BlockCopy& copy : s.copies()) memory.at(copy.to) = memory.at(copy.from);
    std::int64_t tokens = 0, rows = 0;
    const auto block_of = [](const Branch& b, std::int64_t position) {
      return b.blocks.blocks().at(std::size_t(position / 4));
    };
    for (const Share& share : shares) {
      tokens += share.count;
      rows += share.logits;
      const Branch& b = s.sequence(share.id).branch(std::size_t(share.branch));
      ASSERT_GT(share.count, 0);
      ASSERT_EQ(b.computed, share.begin + share.count);
      for (std::int64_t p = share.begin; p < b.computed; ++p) {
        const bool filled = p / 4 < b.computed / 4;  // then others may reuse it in this very step
        ASSERT_TRUE(filled || pool.owners(block_of(b, p)) == 1);
        memory.at(block_of(b, p))[std::size_t(p % 4)] =
            Beginning(b.tokens.begin(), b.tokens.begin() + p + 1);
      }
    }
    for (const Share& share : shares) {
      const Branch& b = s.sequence(share.id).branch(std::size_t(share.branch));
      for (std::int64_t p = window > 0 ? std::max<std::int64_t>(0, share.begin - window + 1) : 0;
           p < b.computed; ++p)
        ASSERT_EQ(memory.at(block_of(b, p))[std::size_t(p % 4)],
                  Beginning(b.tokens.begin(), b.tokens.begin() + p + 1))
            << "position " << p << " of branch " << share.branch << " of sequence " << share.id;
    }
    ASSERT_LE(tokens, l.step_tokens);
    ASSERT_LE(rows, l.logit_rows);
    ASSERT_LE(std::int64_t(shares.size()), l.step_requests);

    if (!shares.empty()) in_flight.push_back(shares);
    if (in_flight.empty() ||
        (!shares.empty() && std::int64_t(in_flight.size()) < steps && rng() % 8 > 0))
      continue;
    const std::vector<Share> done = std::move(in_flight.front());
    in_flight.pop_front();
    s.complete(done);
    std::map<SequenceId, std::size_t> choosing;
    for (const Share& share : done) choosing[share.id] += share.last_of_prompt;
    for (const auto& [id, count] : choosing) {
      if (count == 0 || !left.contains(id)) continue;
      const Sequence& q = s.sequence(id);
      ASSERT_EQ(count, q.branches()) << "some of the branches only";
      if (--left.at(id) == 0) {
        ++ended;
        finish(id);
      } else if (q.width == 1) {
        s.append(id, std::int32_t(rng() % 2));
      } else {
        std::vector<Child> children(1 + rng() % std::size_t(q.width));
        for (Child& c : children) c = {std::int32_t(rng() % q.branches()), std::int32_t(rng() % 2)};
        s.fork(id, children);
        ++forked;
      }
    }
  }
  for (const auto& step : in_flight) s.complete(step);
  EXPECT_TRUE(left.empty()) << left.size() << " sequences did not come to an end";
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(pool.available(), pool.total());
  EXPECT_GT(ended, operations / 40);
  EXPECT_GT(forked, operations / 20);
  EXPECT_GT(copied, operations / 40);
  EXPECT_EQ(s.reused() > 0, reuse);
  EXPECT_EQ(s.pauses() > 0, capacity == Capacity::max_utilization);
}

constexpr int kOperations = 30000;  // of each

TEST(ForkTrace, NoEvict) { random_trace(Capacity::guaranteed_no_evict, false, 0, kOperations); }
TEST(ForkTrace, NoEvictReuse) { random_trace(Capacity::guaranteed_no_evict, true, 0, kOperations); }
TEST(ForkTrace, NoEvictReuseWindow) {
  random_trace(Capacity::guaranteed_no_evict, true, 9, kOperations);
}
TEST(ForkTrace, Utilization) { random_trace(Capacity::max_utilization, false, 0, kOperations); }
TEST(ForkTrace, UtilizationReuse) { random_trace(Capacity::max_utilization, true, 0, kOperations); }
TEST(ForkTrace, UtilizationReuseWindow) {
  random_trace(Capacity::max_utilization, true, 9, kOperations);
}

TEST(ForkTrace, NoEvictReuseThreeSteps) {
  random_trace(Capacity::guaranteed_no_evict, true, 0, kOperations, 3);
}
TEST(ForkTrace, UtilizationReuseTwoSteps) {
  random_trace(Capacity::max_utilization, true, 0, kOperations, 2);
}
TEST(ForkTrace, UtilizationReuseWindowFourSteps) {
  random_trace(Capacity::max_utilization, true, 9, kOperations, 4);
}

}  // namespace
}  // namespace ostro::sched
