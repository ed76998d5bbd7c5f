#include "ostro/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "api/make_executor.h"
#include "base/clock.h"
#include "engine/small_engine.h"

namespace ostro {
namespace {

using namespace std::chrono_literals;
using testing_engine::LoneRank;
using testing_engine::SmallEngine;

struct Output {
  std::vector<TokenId> tokens;
  std::vector<float> log_probs;
  FinishReason finish = FinishReason::none;
  bool operator==(const Output&) const = default;
};

Request request_of(std::size_t i) {
  std::mt19937 rng{unsigned(i)};
  Request r;
  for (std::size_t n = 1 + rng() % 40; n > 0; --n) r.prompt.push_back(TokenId(rng() % 97));
  r.max_new_tokens = std::int64_t(1 + rng() % 30);
  r.sampling.top_k = i % 2 ? 0 : 1;
  r.sampling.seed = i;
  r.end_ids = {2};
  r.user = std::to_string(i % 5);
  r.log_probs = 0;
  return r;
}

void add(const Response& r, Output& out) {
  out.tokens.insert(out.tokens.end(), r.tokens.begin(), r.tokens.end());
  out.log_probs.insert(out.log_probs.end(), r.log_probs.begin(), r.log_probs.end());
  out.finish = r.finish;
}

// All responses of one request.
std::vector<Response> finish(Executor& executor, RequestId id) {
  std::vector<Response> all;
  while (all.empty() || !all.back().is_last) {
    std::vector<Response> some = executor.await_responses(id, 60s);
    if (some.empty()) {
      ADD_FAILURE() << "request " << id << " has no last response";
      return {{}};
    }
    for (Response& r : some) all.push_back(std::move(r));
  }
  return all;
}

Output output_of(Executor& executor, RequestId id) {
  Output out;
  for (const Response& r : finish(executor, id)) add(r, out);
  return out;
}

// A request that runs until it is stopped.
Request long_request() { return {.prompt = {5, 6, 7}, .max_new_tokens = 90}; }

// How far the steps of a rank may go: they wait for leave, and may meet a partner that dies.
struct Gate {
  static constexpr int kEachStep = 2;  // layers
  std::atomic<int> left = 0;           // layers that have leave
  std::atomic<bool> open = false;      // all have
  int dies_after = 1 << 30;            // layers
};

class GatedWorld final : public comm::Communicator {
 public:
  explicit GatedWorld(Gate& gate) : gate_(gate) {}
  int rank() const override { return 0; }
  int ranks() const override { return 1; }
  void all_reduce_sum(View) override {}
  void progress() override {  // called after each layer
    while (!gate_.open && gate_.left == 0) std::this_thread::sleep_for(1ms);
    if (!gate_.open) --gate_.left;
    if (--gate_.dies_after < 0) OSTRO_THROW(DeviceError, "rank 1 died");
  }
  void all_gather_columns(View part, View whole) override {
    comm::make_single()->all_gather_columns(part, whole);
  }
  void send(View, int) override {}
  void receive(View, int) override {}
  void wait_for_message(int) override {}
  void buffer_sends(int, std::size_t) override {}
  void broadcast(std::span<std::byte>, int) override {}
  void barrier() override {}
  std::unique_ptr<comm::Communicator> split(int, int) override {
    return std::make_unique<GatedWorld>(gate_);
  }

 private:
  Gate& gate_;
};

// An executor whose steps wait at a gate.
struct Gated {
  explicit Gated(const SmallEngine& small, std::int64_t batch, const ExecutorConfig& config = {})
      : lone(small, {.max_batch_size = batch}, std::make_unique<GatedWorld>(gate)),
        executor(api::make_executor(lone.rank, small.config(), config)) {}
  ~Gated() { gate.open = true; }
  void allow_steps(int n) { gate.left += n * Gate::kEachStep; }

  Gate gate;
  LoneRank lone;
  Executor executor;
};

class ExecutorTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallEngine; }
  static void TearDownTestSuite() { delete small_; }

  static ExecutorConfig config() { return {.engine_dir = small_->dir(), .threads = 1}; }

  static SmallEngine* small_;
};
SmallEngine* ExecutorTest::small_ = nullptr;

TEST_F(ExecutorTest, ThreadsSubmitAndWaitAndGetWhatTheyGetAlone) {
  constexpr std::size_t kThreads = 8, kEach = 25;
  std::vector<Output> alone;
  {
    Executor executor(config());
    for (std::size_t i = 0; i < kThreads * kEach; ++i) {
      const Submission s = executor.submit(request_of(i));
      ASSERT_TRUE(s) << s.message;
      alone.push_back(output_of(executor, s.id));
    }
  }
  Executor executor(config());
  std::vector<std::thread> threads;
  std::atomic<int> different = 0;
  for (std::size_t t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      std::vector<RequestId> ids;
      for (std::size_t i = 0; i < kEach; ++i)
        ids.push_back(executor.submit(request_of(t * kEach + i)).id);
      for (std::size_t i = 0; i < kEach; ++i)
        if (output_of(executor, ids[i]) != alone[t * kEach + i]) ++different;
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(different, 0);

  const ExecutorStatistics s = executor.statistics();
  EXPECT_EQ(s.accepted, 200);
  EXPECT_EQ(s.finished, 200);
  EXPECT_EQ(s.open, 0);
  EXPECT_EQ(s.queued, 0);
  EXPECT_EQ(s.kv_blocks_used, 0);
  std::int64_t tokens = 0;
  for (const Output& o : alone) tokens += std::int64_t(o.tokens.size());
  EXPECT_EQ(s.output_tokens, tokens);
}

TEST_F(ExecutorTest, OneCallAwaitsAllRequests) {
  Executor executor(config());
  std::map<RequestId, Output> outputs;
  for (std::size_t i = 0; i < 40; ++i) outputs[executor.submit(request_of(i)).id];
  for (std::size_t open = outputs.size(); open > 0;)
    for (const Response& r : executor.await_responses(10s)) {
      add(r, outputs.at(r.id));
      open -= r.is_last;
    }
  EXPECT_TRUE(executor.await_responses(0ms).empty());
  for (const auto& [id, out] : outputs) {
    EXPECT_NE(out.finish, FinishReason::none);
    EXPECT_EQ(out.tokens.size(), out.log_probs.size());
    EXPECT_TRUE(executor.await_responses(id, 10s).empty()) << "handed out twice";
  }
}

TEST_F(ExecutorTest, TellsWhatARequestCost) {
  Executor executor(config());
  const Request request{.prompt = std::vector<TokenId>(20, 9), .max_new_tokens = 4};
  output_of(executor, executor.submit(request).id);
  const Response last = finish(executor, executor.submit(request).id).back();
  EXPECT_TRUE(last.is_final);
  const RequestStatistics& s = last.statistics;
  EXPECT_EQ(s.prompt_tokens, 20);
  EXPECT_EQ(s.reused_tokens, 16);
  EXPECT_EQ(s.output_tokens, 4);
  EXPECT_GE(s.started_s, 0);
  EXPECT_GE(s.first_token_s, s.started_s);
  EXPECT_GE(s.finished_s, s.first_token_s);
  const auto iterations = executor.take_iteration_statistics();
  ASSERT_EQ(iterations.size(), 8u);
  EXPECT_EQ(iterations[0].prompt_tokens, 20);
  EXPECT_EQ(iterations[4].prompt_tokens, 4);
  EXPECT_EQ(iterations[7].iteration, 8);
  EXPECT_TRUE(executor.take_iteration_statistics().empty());
  EXPECT_EQ(executor.model().end_ids, (std::vector<TokenId>{2}));
  EXPECT_EQ(executor.model().context, 96);
  EXPECT_TRUE(executor.model().dummy);
}

TEST_F(ExecutorTest, WithoutReuseNothingIsReused) {
  ExecutorConfig c = config();
  c.kv_cache.block_reuse = false;
  Executor executor(c);
  for (int i = 0; i < 2; ++i)
    output_of(executor, executor.submit({.prompt = std::vector<TokenId>(20, 9)}).id);
  EXPECT_EQ(executor.statistics().reused_tokens, 0);
  EXPECT_EQ(executor.statistics().kv_blocks_cached, 0);
}

TEST_F(ExecutorTest, SaltsKeepCachesApart) {
  Executor executor(config());
  Request request{.prompt = std::vector<TokenId>(20, 9)};
  output_of(executor, executor.submit(request).id);
  request.cache_salt = "tenant";
  EXPECT_EQ(finish(executor, executor.submit(request).id).back().statistics.reused_tokens, 0);
  EXPECT_EQ(finish(executor, executor.submit(request).id).back().statistics.reused_tokens, 16);
}

TEST_F(ExecutorTest, CancelsWhatRunsAndWhatWaits) {
  Gated g(*small_, 1);
  Executor& executor = g.executor;
  const RequestId runs = executor.submit(long_request()).id;
  const RequestId waits = executor.submit(long_request()).id;
  g.allow_steps(2);
  ASSERT_FALSE(executor.await_responses(runs, 60s).empty());
  EXPECT_TRUE(executor.cancel(waits));
  EXPECT_TRUE(executor.cancel(runs));
  g.gate.open = true;
  EXPECT_EQ(output_of(executor, waits), (Output{{}, {}, FinishReason::cancelled}));
  const Response last = finish(executor, runs).back();
  EXPECT_EQ(last.finish, FinishReason::cancelled);
  EXPECT_LE(last.statistics.output_tokens, 3) << "a cancel waits for the step at hand alone";
  EXPECT_FALSE(executor.cancel(runs));
  EXPECT_FALSE(executor.cancel(12345));
  EXPECT_EQ(executor.statistics().cancelled, 2);
  EXPECT_EQ(executor.statistics().kv_blocks_used, 0);
  EXPECT_EQ(executor.statistics().queued, 0);
}

TEST_F(ExecutorTest, CancelsOneSequence) {
  Gated g(*small_, 4);
  Executor& executor = g.executor;
  Request request = long_request();
  request.num_return_sequences = 3;
  request.sampling.top_k = 0;
  const auto outputs = [&](RequestId id) {
    std::vector<Output> all(3);
    for (const Response& r : finish(executor, id)) add(r, all.at(std::size_t(r.sequence)));
    return all;
  };
  g.gate.open = true;
  const std::vector<Output> whole = outputs(executor.submit(request).id);
  g.gate.open = false;
  const RequestId id = executor.submit(request).id;
  g.allow_steps(3);
  EXPECT_FALSE(executor.cancel(id, -1));
  EXPECT_TRUE(executor.cancel(id, 7)) << "no such sequence: nothing happens";
  EXPECT_TRUE(executor.cancel(id, 1));
  g.gate.open = true;
  const std::vector<Output> rest = outputs(id);
  EXPECT_EQ(rest[0], whole[0]);
  EXPECT_EQ(rest[1].finish, FinishReason::cancelled);
  EXPECT_LE(rest[1].tokens.size(), 4u);
  EXPECT_EQ(rest[2], whole[2]);
  // The last that is open takes the request with it.
  request.num_return_sequences = 1;
  const RequestId alone = executor.submit(request).id;
  EXPECT_TRUE(executor.cancel(alone, 0));
  EXPECT_TRUE(finish(executor, alone).back().is_last);
  EXPECT_EQ(executor.statistics().kv_blocks_used, 0);
  EXPECT_EQ(executor.statistics().open, 0);
}

TEST_F(ExecutorTest, ABeamSearchIsNotCancelledInParts) {
  model::EngineConfig config = testing_engine::small_config();
  config.limits.max_beam_width = 2;
  const SmallEngine wide(config);
  Gated g(wide, 4);
  Request request = long_request();
  request.num_return_sequences = request.sampling.num_beams = 2;
  const Submission s = g.executor.submit(request);
  ASSERT_TRUE(s) << s.message;
  g.allow_steps(3);
  EXPECT_TRUE(g.executor.cancel(s.id, 0));
  g.gate.open = true;
  const std::vector<Response> all = finish(g.executor, s.id);
  ASSERT_EQ(all.size(), 2u);
  for (const Response& r : all) EXPECT_EQ(r.finish, FinishReason::length);
}

// With as many beams as tokens a search of two steps leaves nothing out.
TEST_F(ExecutorTest, BeamsAreTheBestOfAllSequences) {
  constexpr std::int64_t kVocab = 24;
  model::EngineConfig config = testing_engine::small_config();
  config.model.vocab = kVocab;
  config.limits.max_beam_width = kVocab;
  const SmallEngine wide(config);
  Executor executor({.engine_dir = wide.dir(), .threads = 1});
  const std::vector<TokenId> prompt = {5, 6, 7};
  const auto next = [&](std::vector<TokenId> tokens) {
    Request r{.prompt = std::move(tokens), .max_new_tokens = 1};
    r.log_probs = std::int32_t(kVocab);
    return finish(executor, executor.submit(r).id).at(0).alternatives.at(0);
  };
  std::vector<std::pair<double, std::vector<TokenId>>> all;
  for (const TokenLogProb& a : next(prompt)) {
    std::vector<TokenId> longer = prompt;
    longer.push_back(a.token);
    for (const TokenLogProb& b : next(longer))
      all.push_back({double(a.log_prob) + b.log_prob, {a.token, b.token}});
  }
  ASSERT_EQ(all.size(), std::size_t(kVocab * kVocab));
  std::ranges::sort(all, std::greater{});

  Request search{.prompt = prompt, .max_new_tokens = 2, .num_return_sequences = 3};
  search.log_probs = 0;
  search.sampling.num_beams = kVocab;
  search.sampling.length_penalty = 2;
  const Submission s = executor.submit(search);
  ASSERT_TRUE(s) << s.message;
  const std::vector<Response> beams = finish(executor, s.id);
  ASSERT_EQ(beams.size(), 3u);
  for (std::size_t i = 0; i < beams.size(); ++i) {
    EXPECT_EQ(beams[i].sequence, std::int32_t(i));
    EXPECT_TRUE(beams[i].is_final);
    EXPECT_EQ(beams[i].tokens, all[i].second);
    // Two sums of float32 log-probabilities below 2^4: each is off by 2^-20 at most.
    EXPECT_NEAR(beams[i].score, all[i].first / 4, 1e-5);
    EXPECT_NEAR(double(beams[i].log_probs.at(0)) + beams[i].log_probs.at(1), all[i].first, 1e-5);
  }
  search.sampling.num_beams = kVocab + 1;
  const Submission refused = executor.submit(search);
  EXPECT_EQ(refused.status, SubmitStatus::invalid);
  EXPECT_NE(refused.message.find("max_beam_width 24"), std::string::npos) << refused.message;
}

TEST_F(ExecutorTest, AFullQueueIsAnAnswer) {
  Gated g(*small_, 1, {.max_queue_size = 2});
  Executor& executor = g.executor;
  const RequestId runs = executor.submit(long_request()).id;
  g.allow_steps(1);
  ASSERT_FALSE(executor.await_responses(runs, 60s).empty());
  EXPECT_TRUE(executor.submit(long_request()));
  EXPECT_TRUE(executor.submit(long_request()));
  const Submission s = executor.submit(long_request());
  EXPECT_EQ(s.status, SubmitStatus::queue_full);
  EXPECT_EQ(s.message, "2 requests wait; there is room for 2");
  EXPECT_EQ(executor.statistics().rejected, 1);
  g.gate.open = true;
}

TEST_F(ExecutorTest, ATimeLimitEndsARequest) {
  Gated g(*small_, 4);
  Request r = long_request();
  r.num_return_sequences = 3;
  r.time_limit = 5ms;
  r.streaming = false;
  const RequestId id = g.executor.submit(r).id;
  std::this_thread::sleep_for(20ms);
  g.gate.open = true;
  const std::vector<Response> all = finish(g.executor, id);
  ASSERT_EQ(all.size(), 3u);
  for (const Response& x : all) EXPECT_EQ(x.finish, FinishReason::timed_out);
  EXPECT_LE(all[2].statistics.output_tokens, 3);
  EXPECT_EQ(g.executor.statistics().timed_out, 1);
  r.time_limit = 600s;
  EXPECT_EQ(finish(g.executor, g.executor.submit(r).id).back().finish, FinishReason::length);
}

TEST_F(ExecutorTest, SaysWhatIsWrongWithARequest) {
  Executor executor(config());
  const auto message = [&](Request r) {
    const Submission s = executor.submit(std::move(r));
    EXPECT_EQ(s.status, SubmitStatus::invalid);
    return s.message;
  };
  EXPECT_EQ(message({.prompt = {}}), "the prompt is empty");
  EXPECT_EQ(message({.prompt = {1, 97}}),
            "token 1 of the prompt is 97; the vocabulary has ids 0 to 96");
  EXPECT_EQ(message({.prompt = {1}, .sampling = {.temperature = -1}}),
            "temperature is -1; it must be 0 or more");
  EXPECT_EQ(message({.prompt = {1}, .sampling = {.bad_words = {{}}}}), "a bad word has no tokens");
  EXPECT_EQ(message({.prompt = {1}, .time_limit = -1ms}),
            "time_limit is -1 ms; it must be 0 (none) or more");
  EXPECT_EQ(message({.prompt = {1}, .max_new_tokens = 96}),
            "the prompt has 1 tokens and 96 more are asked for; the context of this engine is 96");
}

// Ids are bytes; the vocabulary has 97.
Vocabulary first_bytes() {
  Vocabulary v;
  for (int c = 0; c < 97; ++c) v.bytes.emplace_back(1, char(c));
  return v;
}

TEST_F(ExecutorTest, APreparedGuideStaysWithItsRequest) {
  ExecutorConfig with_guides = config();
  with_guides.vocabulary = first_bytes();
  Executor executor(with_guides), other(with_guides);
  const Guide guide{.kind = GuideKind::regex, .text = "[0-9]{3}"};
  EXPECT_EQ(executor.find_prepared(guide), nullptr);
  const Preparation prepared = executor.prepare(guide);
  ASSERT_TRUE(prepared) << prepared.message;
  EXPECT_NE(executor.find_prepared(guide), nullptr);
  // What stands in `guide` is not compiled any more.
  Request r{.prompt = {1}, .max_new_tokens = 9};
  r.guide = Guide{.kind = GuideKind::regex, .text = "a["};
  r.compiled_guide = prepared.guide;
  const Output out = output_of(executor, executor.submit(r).id);
  EXPECT_EQ(out.finish, FinishReason::guide);
  ASSERT_EQ(out.tokens.size(), 3u);
  for (const TokenId t : out.tokens) EXPECT_TRUE(t >= '0' && t <= '9') << t;
  EXPECT_EQ(other.submit(r).message, "the compiled guide is of another executor");
  EXPECT_EQ(executor.prepare(*r.guide).status, SubmitStatus::invalid);
}

TEST_F(ExecutorTest, GathersWhatIsNotStreamed) {
  Executor executor(config());
  Request r{.prompt = {4, 5, 6, 7, 8, 9, 10, 11, 12}, .max_new_tokens = 6};
  r.num_return_sequences = 2;
  r.sampling.top_k = 0;
  r.log_probs = 3;
  r.prompt_log_probs = 2;
  r.logits = true;
  r.streaming = false;
  const std::vector<Response> all = finish(executor, executor.submit(r).id);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_NE(all[0].tokens, all[1].tokens);
  for (const Response& x : all) {
    EXPECT_EQ(x.tokens.size(), 6u);
    EXPECT_EQ(x.log_probs.size(), 6u);
    ASSERT_EQ(x.alternatives.size(), 6u);
    EXPECT_EQ(x.alternatives[0].size(), 3u);
    EXPECT_EQ(x.logits.size(), 6u * 97);
    double sum = 0;
    for (float p : x.log_probs) sum += p;
    EXPECT_DOUBLE_EQ(x.score, sum);
    const bool first = x.sequence == 0;
    EXPECT_EQ(x.prompt_log_probs.size(), first ? 8u : 0u);
    EXPECT_EQ(x.prompt_alternatives.size(), first ? 8u : 0u);
  }
}

TEST_F(ExecutorTest, DrainsOrCancelsOnShutdown) {
  for (const Drain drain : {Drain::yes, Drain::no}) {
    Gated g(*small_, 2);
    Executor& executor = g.executor;
    std::vector<RequestId> ids;
    for (int i = 0; i < 6; ++i) ids.push_back(executor.submit(long_request()).id);
    std::thread shuts([&] { executor.shutdown(drain); });
    while (executor.submit(long_request())) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(executor.submit(long_request()).status, SubmitStatus::shut_down);
    g.gate.open = true;
    shuts.join();
    for (RequestId id : ids)
      EXPECT_EQ(output_of(executor, id).finish,
                drain == Drain::yes ? FinishReason::length : FinishReason::cancelled);
    while (!executor.await_responses(0ms).empty()) {
    }
    EXPECT_TRUE(executor.await_responses(60s).empty()) << "nothing can come any more";
    EXPECT_EQ(executor.statistics().open, 0);
    EXPECT_EQ(executor.failure(), "");
    executor.shutdown(Drain::no);
  }
}

TEST_F(ExecutorTest, WhoWaitsForAnIdleExecutorIsWokenByItsEnd) {
  Executor executor(config());
  std::thread waits([&] { EXPECT_TRUE(executor.await_responses(60s).empty()); });
  const Stopwatch watch;
  executor.shutdown(Drain::yes);
  waits.join();
  EXPECT_LT(watch.seconds(), 30);
}

TEST_F(ExecutorTest, SaysWhatIsWrongWithItsConfiguration) {
  const auto message = [](const ExecutorConfig& c) -> std::string {
    try {
      Executor executor(c);
    } catch (const std::runtime_error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "engine_dir is empty: it names the directory that `ostro build` wrote");
  EXPECT_EQ(message({.engine_dir = small_->dir(), .device = "tpu"}),
            "device is \"tpu\"; it must be auto, cpu or cuda");
  EXPECT_EQ(message({.engine_dir = small_->dir(), .max_queue_size = -1}),
            "max_queue_size is -1; it must be 0 (no limit) or more");
  EXPECT_NE(message({.engine_dir = small_->dir(), .fp8_prompts = true})
                .find("fp8_prompts goes with int4 weights, but those of this engine are "),
            std::string::npos);
  EXPECT_NE(message({.engine_dir = "/nonexistent"}).find("/nonexistent"), std::string::npos);
}

TEST_F(ExecutorTest, AFailureEndsAllRequestsAndStays) {
  Gated g(*small_, 2);
  g.gate.dies_after = 10 * Gate::kEachStep;
  Executor& executor = g.executor;
  EXPECT_NO_THROW(api::rethrow_failure(executor));
  std::vector<RequestId> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(executor.submit(long_request()).id);
  g.gate.open = true;
  for (RequestId id : ids) {
    const Response last = finish(executor, id).back();
    EXPECT_EQ(last.finish, FinishReason::error);
    EXPECT_EQ(last.error, "rank 1 died");
  }
  const Submission s = executor.submit(long_request());
  EXPECT_EQ(s.status, SubmitStatus::failed);
  EXPECT_EQ(s.message, "rank 1 died");
  EXPECT_EQ(executor.failure(), "rank 1 died");
  EXPECT_TRUE(executor.await_responses(60s).empty());
  executor.shutdown(Drain::yes);
  EXPECT_THROW(api::rethrow_failure(executor), DeviceError);
}

}  // namespace
}  // namespace ostro
