// Several steps in flight: who is in which.
#include <gtest/gtest.h>

#include <deque>
#include <set>

#include "base/error.h"
#include "sched/scheduler.h"

namespace ostro::sched {
namespace {

Limits limits(std::int64_t steps, std::int64_t requests = 64) {
  return {.step_tokens = 64,
          .step_requests = requests,
          .logit_rows = 64,
          .context = 512,
          .block_tokens = 4,
          .window = 0,
          .steps = steps};
}

Demand demand(std::size_t prompt, std::int64_t max_new) {
  return {.prompt = std::vector<std::int32_t>(prompt, 7), .max_new_tokens = max_new};
}

// Keeps `steps` in flight, as the engine does; the sequences go on for ever.
class Pipeline {
 public:
  Pipeline(Scheduler& scheduler, std::int64_t steps) : scheduler_(scheduler), steps_(steps) {}

  // The shares of the step that was launched last, before the oldest is completed.
  std::vector<Share> turn() {
    while (std::int64_t(in_flight_.size()) < steps_) {
      in_flight_.push_back(scheduler_.next());
      if (in_flight_.back().empty()) break;
    }
    const std::vector<Share> newest = in_flight_.back();
    if (newest.empty()) in_flight_.pop_back();
    collect();
    return newest;
  }
  void collect() {
    const std::vector<Share> done = in_flight_.front();
    in_flight_.pop_front();
    scheduler_.complete(done);
    for (const Share& share : done)
      if (share.last_of_prompt && scheduler_.has_started(share.id)) scheduler_.append(share.id, 3);
  }

 private:
  Scheduler& scheduler_;
  std::int64_t steps_;
  std::deque<std::vector<Share>> in_flight_;
};

std::set<SequenceId> ids_of(const std::vector<Share>& shares) {
  std::set<SequenceId> ids;
  for (const Share& share : shares) ids.insert(share.id);
  return ids;
}

TEST(StepsInFlight, ShareTheSequencesEvenly) {
  for (const std::int64_t steps : {2, 3, 4}) {
    kv::BlockPool pool(4096);
    Scheduler s(limits(steps), pool);
    for (SequenceId id = 1; id <= 22; ++id) s.add(id, demand(2, 100));
    Pipeline pipeline(s, steps);
    for (int i = 0; i < 20; ++i) pipeline.turn();
    std::set<SequenceId> all;
    for (std::int64_t i = 0; i < steps; ++i) {
      const auto ids = ids_of(pipeline.turn());
      EXPECT_LE(std::int64_t(ids.size()), (22 + steps - 1) / steps);
      EXPECT_GE(std::int64_t(ids.size()), 22 / steps - 1);
      for (SequenceId id : ids) EXPECT_TRUE(all.insert(id).second) << id << " twice in flight";
    }
    EXPECT_EQ(all.size(), 22u) << steps << " steps";
  }
}

TEST(StepsInFlight, ShareWhatFitsWhenMoreIsWaiting) {
  kv::BlockPool pool(8 * 4);  // room for 8 sequences of 16 tokens
  Scheduler s(limits(2), pool);
  for (SequenceId id = 1; id <= 30; ++id) s.add(id, demand(2, 15));
  Pipeline pipeline(s, 2);
  for (int i = 0; i < 4; ++i) pipeline.turn();
  EXPECT_EQ(s.running(), 8u);
  EXPECT_EQ(pipeline.turn().size(), 4u);
  EXPECT_EQ(pipeline.turn().size(), 4u);
}

TEST(StepsInFlight, TakeTheChunksOfOnePromptInOrder) {
  kv::BlockPool pool(4096);
  Scheduler s(limits(2), pool);
  s.add(1, demand(150, 4));
  const auto first = s.next();
  const auto second = s.next();
  const auto third = s.next();
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(second.size(), 1u);
  ASSERT_EQ(third.size(), 1u);
  EXPECT_EQ(first[0].count, 64);
  EXPECT_EQ(second[0].begin, 64);
  EXPECT_FALSE(second[0].last_of_prompt);
  EXPECT_EQ(third[0].begin, 128);
  EXPECT_TRUE(third[0].last_of_prompt);
  EXPECT_TRUE(s.next().empty());  // its next token is not chosen yet
  for (const auto& step : {first, second, third}) s.complete(step);
  s.append(1, 5);
  EXPECT_EQ(s.next().size(), 1u);
}

TEST(StepsInFlight, KeepTheirBlocks) {
  kv::BlockPool pool(5);
  Scheduler s(limits(2), pool, {.capacity = Capacity::max_utilization});
  s.add(1, demand(7, 9));
  s.add(2, demand(7, 9));
  const auto one = s.next();
  const auto two = s.next();
  ASSERT_EQ(ids_of(one), std::set<SequenceId>{1});
  ASSERT_EQ(ids_of(two), std::set<SequenceId>{2});
  s.complete(one);
  s.append(1, 5);
  for (int token = 8; token <= 12; ++token) {
    const auto more = s.next();
    ASSERT_EQ(ids_of(more), std::set<SequenceId>{1});
    s.complete(more);
    s.append(1, 5);
  }
  EXPECT_TRUE(s.next().empty()) << "the next needs a block, and 2 is in flight";
  EXPECT_EQ(s.pauses(), 0);
  s.complete(two);
  s.append(2, 5);
  EXPECT_EQ(ids_of(s.next()), std::set<SequenceId>{1});
  EXPECT_EQ(s.pauses(), 1);
}

TEST(StepsInFlight, OutliveTheirSequences) {
  kv::BlockPool pool(64);
  Scheduler s(limits(2), pool);
  s.add(1, demand(3, 9));
  const auto step = s.next();
  s.remove(1);
  EXPECT_EQ(pool.available(), pool.total());
  s.complete(step);
  EXPECT_TRUE(s.idle());
  EXPECT_THROW(s.complete(step), InternalError);
}

}  // namespace
}  // namespace ostro::sched
