// Sequences that are held to a guide.
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <utility>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/small_engine.h"
#include "guide/compiler.h"

namespace ostro::engine {
namespace {

using testing_engine::LoneRank;
using testing_engine::SmallEngine;

constexpr std::int32_t kFirst = 3;  // stands for '!', the next for '"' ...

char text_of(std::int32_t token) { return char('!' + token - kFirst); }

guide::Vocabulary vocabulary(std::int64_t vocab, char but = 0) {
  guide::Vocabulary v;
  v.bytes.resize(std::size_t(vocab));
  for (std::int32_t t = kFirst; t < vocab; ++t)
    if (text_of(t) != but) v.bytes[std::size_t(t)] = text_of(t);
  return v;
}

struct Output {
  std::string text;
  Finish finish = Finish::none;
  bool operator==(const Output&) const = default;
};
using Outputs = std::map<std::pair<RequestId, std::int32_t>, Output>;

class Guided : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallEngine; }
  static void TearDownTestSuite() { delete small_; }

  static std::int64_t vocab() { return small_->config().model.vocab; }

  static Request request(const std::string& regex, char but = 0) {
    guide::Compiler compiler(vocabulary(vocab(), but), vocab());
    Request r{.prompt = {1, 20, 30, 40, 50, 60, 70, 80, 90}, .max_new_tokens = 60};
    r.guide = compiler.compile({guide::Kind::regex, regex, false});
    return r;
  }

  // Until the engine is idle.
  static void drain(Engine& engine, Outputs& outputs) {
    while (!engine.idle())
      for (const Event& e : engine.step()) {
        Output& output = outputs[{e.id, e.sequence}];
        if (e.has_token && e.finish != Finish::end_id) output.text += text_of(e.token);
        output.finish = e.finish;
      }
  }

  static SmallEngine* small_;
};
SmallEngine* Guided::small_ = nullptr;

TEST_F(Guided, OutputsFitTheirGuideAndAreTheSameAloneAndAfterPauses) {
  const std::string regex = "[a-f]{20,30}(-[0-9]{2,4}){1,3}";
  Request r = request(regex);
  r.end_ids = {2};
  r.sequences = 2;
  r.sampling.top_k = 0;
  LoneRank lone(*small_, {.max_num_tokens = 40, .kv_cache_tokens = 104});
  Engine one_by_one(lone.rank, small_->config().model);
  Engine beside(lone.rank, small_->config().model, {.capacity = sched::Capacity::max_utilization});
  Outputs alone, paused;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    r.sampling.seed = seed;
    one_by_one.submit(r);
    drain(one_by_one, alone);
  }
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    r.sampling.seed = seed;
    beside.submit(r);
  }
  drain(beside, paused);
  EXPECT_GT(beside.report().pauses_total, 0);
  EXPECT_EQ(alone.size(), 16u);
  EXPECT_TRUE(paused == alone);
  for (const auto& [id, output] : alone) {
    EXPECT_TRUE(std::regex_match(output.text, std::regex(regex))) << output.text;
    EXPECT_TRUE(output.finish == Finish::guide || output.finish == Finish::end_id);
  }
}

TEST_F(Guided, ADeadEndSaysSo) {
  LoneRank lone(*small_);
  Engine engine(lone.rank, small_->config().model);
  Outputs outputs;
  engine.submit(request("ab", 'b'));
  drain(engine, outputs);
  engine.submit(request("b", 'b'));
  drain(engine, outputs);
  EXPECT_EQ(outputs,
            (Outputs{{{1, 0}, {"a", Finish::dead_end}}, {{2, 0}, {"", Finish::dead_end}}}));
}

TEST_F(Guided, BeamsAreNot) {
  LoneRank lone(*small_);
  Engine engine(lone.rank, small_->config().model);
  Request r = request("a");
  r.beams.width = 2;
  try {
    engine.submit(r);
    FAIL() << "accepted";
  } catch (const InvalidArgument& e) {
    EXPECT_STREQ(e.what(), "num_beams is 2 and there is a guide; only one beam is guided");
  }
}

}  // namespace
}  // namespace ostro::engine
