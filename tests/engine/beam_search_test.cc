// Beam search: choices and scores worked out by hand, and beams on an engine.
#include "engine/beam_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

constexpr float kNever = -INFINITY;
constexpr std::int32_t kEnd = 0;

BeamSearch::Kept kept(const BeamSearch& s, std::size_t i) { return s.kept().at(i); }

std::vector<std::int32_t> tokens(const BeamSearch& s, std::size_t i) {
  std::vector<std::int32_t> ids;
  for (std::int32_t n : s.path(kept(s, i).last)) ids.push_back(s.nodes()[std::size_t(n)].token);
  return ids;
}

std::vector<sched::Child> advance(BeamSearch& s) {
  return s.advance([](const sched::Child& c) {
    return c.token == kEnd ? Ending{Finish::end_id, 0} : Ending{};
  });
}

void expect_children(const std::vector<sched::Child>& got,
                     const std::vector<std::pair<std::int32_t, std::int32_t>>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].branch, want[i].first) << i;
    EXPECT_EQ(got[i].token, want[i].second) << i;
  }
}

// After the first step beams (1, -1) and (2, -2); then of the sums -1.5 (0: end), -1.75, -2.25,
// -2.5, the end is kept and the two after it stay open.
void two_steps(BeamSearch& s, std::vector<sched::Child>& children) {
  s.offer(std::vector<float>{-9, -1, -2, -5});
  expect_children(advance(s), {{0, 1}, {0, 2}});
  s.offer(std::vector<float>{-0.5, -0.75, kNever, -9});
  s.offer(std::vector<float>{-9, -9, -0.25, -0.5});
  children = advance(s);
}

TEST(BeamSearch, KeepsWhatEndsAmongTheFirstAndGoesOnWithTheBestOthers) {
  BeamSearch s({.width = 2, .length_penalty = 2, .early_stopping = EarlyStopping::no}, 1, 10);
  std::vector<sched::Child> children;
  two_steps(s, children);
  expect_children(children, {{0, 1}, {1, 2}});
  ASSERT_EQ(s.kept().size(), 1u);
  EXPECT_EQ(kept(s, 0).score, -1.5f / 4);
  EXPECT_EQ(kept(s, 0).ending.finish, Finish::end_id);
  EXPECT_EQ(tokens(s, 0), (std::vector<std::int32_t>{1, 0}));
}

TEST(BeamSearch, AnEndBehindTheFirstIsNotKept) {
  BeamSearch s({.width = 2}, 1, 10);
  s.offer(std::vector<float>{-3, -1, -2, -4});
  expect_children(advance(s), {{0, 1}, {0, 2}});
  EXPECT_TRUE(s.kept().empty());
}

// Two are kept, of the scores -1.5 / 2^p and -2 / 3^p; the best open beam's sum is -1.95.
std::size_t open_after_three_steps(EarlyStopping early, float length_penalty) {
  BeamSearch s({.width = 2, .length_penalty = length_penalty, .early_stopping = early}, 1, 10);
  std::vector<sched::Child> children;
  two_steps(s, children);
  s.offer(std::vector<float>{-0.25, -0.2, -9, -9});
  s.offer(std::vector<float>{-9, -9, -9, -9});
  return advance(s).size();
}

TEST(BeamSearch, StopsWhenToldTo) {
  EXPECT_EQ(open_after_three_steps(EarlyStopping::yes, 1), 0u);
  EXPECT_EQ(open_after_three_steps(EarlyStopping::no, 1), 2u) << "-1.95 / 3 beats the worst, -0.75";
  EXPECT_EQ(open_after_three_steps(EarlyStopping::no, 0), 2u) << "-1.95 beats -2";
  EXPECT_EQ(open_after_three_steps(EarlyStopping::never, 1), 2u);
}

// The best open beam, -4.5 / 2, is worse than both kept ones now, and at length 10 it is not.
TEST(BeamSearch, NeverLooksAtTheGreatestLength) {
  for (EarlyStopping early : {EarlyStopping::no, EarlyStopping::never}) {
    BeamSearch s({.width = 2, .early_stopping = early}, 1, 10);
    s.offer(std::vector<float>{-9, -1, -2, kNever});
    advance(s);
    s.offer(std::vector<float>{-0.5, -3.5, kNever, kNever});
    s.offer(std::vector<float>{-0.5, -3.5, kNever, kNever});
    EXPECT_EQ(advance(s).size(), early == EarlyStopping::no ? 0u : 2u);
    EXPECT_EQ(kept(s, 0).score, -0.75f);
    EXPECT_EQ(kept(s, 1).score, -1.25f);
  }
}

TEST(BeamSearch, AtTheGreatestLengthTheBestAreKept) {
  BeamSearch s({.width = 2}, 1, 2);
  std::vector<sched::Child> children;
  two_steps(s, children);
  EXPECT_TRUE(children.empty());
  ASSERT_EQ(s.kept().size(), 2u);
  EXPECT_EQ(tokens(s, 0), (std::vector<std::int32_t>{1, 0}));
  EXPECT_EQ(tokens(s, 1), (std::vector<std::int32_t>{1, 1}));
  EXPECT_EQ(kept(s, 1).score, -1.75f / 2);
  EXPECT_EQ(kept(s, 1).ending.finish, Finish::length);
}

TEST(BeamSearch, DiversityFavoursTheChildrenOfWorseBeams) {
  BeamSearch s({.width = 2, .diversity_rate = 1}, 1, 10);
  s.offer(std::vector<float>{-9, -1, -2, -5});
  expect_children(advance(s), {{0, 1}, {0, 2}});
  s.offer(std::vector<float>{-9, -0.75, -1, -9});    // -1.75, -2
  s.offer(std::vector<float>{-9, -9, -0.5, -0.25});  // -2.5 + 1, -2.25 + 1
  expect_children(advance(s), {{1, 3}, {1, 2}});
}

TEST(BeamSearch, EndsWithWhatThereIs) {
  BeamSearch s({.width = 3}, 1, 10);
  s.offer(std::vector<float>{-1, kNever, kNever, kNever});
  EXPECT_TRUE(advance(s).empty());
  EXPECT_EQ(s.kept().size(), 1u);
}

TEST(BeamSearch, SaysWhatIsWrong) {
  const auto message = [](const Beams& b) {
    try {
      check(b);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.width = 0}), "num_beams is 0; it must be at least 1");
  EXPECT_EQ(message({.length_penalty = 2}), "length_penalty is 2; it goes with num_beams over 1");
  EXPECT_EQ(message({.width = 2, .length_penalty = NAN}), "length_penalty is nan");
}

// On an engine.

model::EngineConfig wide_config() {
  model::EngineConfig config = testing_engine::small_config();
  config.limits.max_beam_width = 4;
  return config;
}

using Outputs = std::map<std::pair<RequestId, std::int32_t>, std::vector<std::int32_t>>;

Outputs run(Engine& engine, std::size_t requests) {
  for (std::size_t i = 0; i < requests; ++i) {
    Request r;
    for (std::size_t n = 0; n < 3 + 7 * (i % 3); ++n) r.prompt.push_back(std::int32_t(5 + n));
    r.max_new_tokens = std::int64_t(12 + i % 5);
    r.end_ids = {2, 3};
    if (i % 3 != 2) r.beams.width = std::int32_t(2 + i % 3);
    r.sequences = r.beams.width;
    r.sampling.no_repeat_ngram_size = 2;
    engine.submit(r);
  }
  Outputs outputs;
  while (!engine.idle())
    for (const Event& e : engine.step())
      if (e.has_token) outputs[{e.id, e.sequence}].push_back(e.token);
  EXPECT_EQ(engine.pool().available(), engine.pool().total());
  return outputs;
}

TEST(Beams, AreTheSameAfterPausesInChunksAndBesideOthers) {
  const testing_engine::SmallEngine small(wide_config());
  testing_engine::LoneRank roomy(small);
  Engine plain(roomy.rank, small.config().model, {.block_reuse = false});
  const Outputs want = run(plain, 12);
  EXPECT_EQ(plain.report().pauses_total, 0);
  EXPECT_EQ(want.size(), 8u / 2 * 5 + 4);
  testing_engine::LoneRank tight(
      small, {.max_batch_size = 12, .max_num_tokens = 12, .kv_cache_tokens = 80});
  for (const bool reuse : {false, true}) {
    Engine crowded(tight.rank, small.config().model,
                   {.capacity = sched::Capacity::max_utilization, .block_reuse = reuse});
    EXPECT_EQ(run(crowded, 12), want);
    EXPECT_GT(crowded.report().pauses_total, 0);
  }
}

TEST(Beams, ComeBestFirstAndCanBeCancelled) {
  const testing_engine::SmallEngine small(wide_config());
  testing_engine::LoneRank lone(small);
  Engine engine(lone.rank, small.config().model);
  Request r{.prompt = {5, 6, 7}, .max_new_tokens = 6, .sequences = 3};
  r.beams.width = 4;
  const RequestId cancelled = engine.submit(r);
  engine.step();
  engine.step();
  engine.cancel(cancelled);
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.pool().available(), engine.pool().total());

  engine.submit(r);
  std::vector<Event> events;
  while (!engine.idle())
    for (Event& e : engine.step()) events.push_back(std::move(e));
  ASSERT_EQ(events.size(), 18u);
  EXPECT_TRUE(events.back().last);
  EXPECT_EQ(events.back().usage.output_tokens, 18);
  for (std::size_t i = 0; i < 3; ++i) {
    float sum = 0;
    for (std::size_t j = 0; j < 6; ++j) sum += events[6 * i + j].log_prob;
    const Event& end = events[6 * i + 5];
    EXPECT_EQ(end.sequence, std::int32_t(i));
    EXPECT_EQ(end.finish, Finish::length);
    EXPECT_NEAR(end.score, sum / 6, 1e-5);
    EXPECT_LE(end.score, events[i == 0 ? 5 : 6 * i - 1].score);
  }
}

TEST(Beams, AreRefusedWhereTheyCannotBe) {
  const testing_engine::SmallEngine small(wide_config());
  testing_engine::LoneRank lone(small);
  const Engine engine(lone.rank, small.config().model);
  const auto message = [&](Request r) {
    r.prompt = {5};
    r.max_new_tokens = 4;
    try {
      engine.check(r);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  Request r;
  r.beams.width = 5;
  EXPECT_EQ(message(r), "num_beams is 5; the engine was built with --max_beam_width 4");
  r.beams.width = 2;
  EXPECT_EQ(message(r), "");
  r.sequences = 3;
  EXPECT_EQ(message(r), "3 sequences are asked for of 2 beams");
  r.sequences = 1;
  r.sampling.top_k = 0;
  EXPECT_EQ(message(r), "num_beams is 2 and top_k 0; beams are not sampled: top_k must be 1");
}

}  // namespace
}  // namespace ostro::engine
