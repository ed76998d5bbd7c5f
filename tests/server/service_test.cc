// The routes over an executor that does what the test says.
#include "server/service.h"

#include <gtest/gtest.h>

#include <set>

#include "server/api_error.h"

namespace ostro::server {
namespace {

using nlohmann::json;

struct FakeGenerator : Generator {
  Submission submit(Request r) override {
    if (throws) throw std::runtime_error("the secret inside");
    if (refusal.status != SubmitStatus::accepted && requests.size() >= accepts) return refusal;
    requests.push_back(std::move(r));
    return {.id = RequestId(requests.size())};
  }
  Submission prepare(const Guide& guide) override {
    prepared.push_back(guide);
    return preparation;
  }
  std::vector<Response> await_responses(std::chrono::milliseconds) override { return {}; }
  bool cancel(RequestId id) override { return cancelled.insert(id).second; }
  bool cancel(RequestId id, std::int32_t sequence) override {
    return ended_sequences.emplace(id, sequence).second;
  }
  std::string failure() const override { return failed; }
  ExecutorStatistics statistics() const override { return {.queued = 3, .open = 5}; }
  std::vector<IterationStatistics> take_iteration_statistics() override { return {}; }

  ModelInfo info{.vocab = 8192, .context = 128, .end_ids = {2}};
  std::vector<Request> requests;
  std::vector<Guide> prepared;
  Submission preparation;
  std::set<RequestId> cancelled;
  std::set<std::pair<RequestId, std::int32_t>> ended_sequences;
  Submission refusal;
  std::size_t accepts = 0;
  std::string failed;
  bool throws = false;
};

struct FakeReply : Reply {
  void send(HttpResponse r) override { response = std::move(r), ended = true; }
  void open_stream() override { streaming = true; }
  void write(std::string_view events) override { stream += events; }
  void close_stream() override { ended = true; }
  void when_gone(std::function<void()> f) override { gone = std::move(f); }

  json error() const { return json::parse(response.body).at("error"); }
  json choice(int i = 0) const { return json::parse(response.body).at("choices").at(i); }
  std::vector<json> events() const {
    std::vector<json> all;
    std::size_t at = 0;
    while (at < stream.size()) {
      const std::size_t end = stream.find("\n\n", at);
      EXPECT_EQ(stream.substr(at, 6), "data: ");
      const std::string data = stream.substr(at + 6, end - at - 6);
      all.push_back(data == "[DONE]" ? json(data) : json::parse(data));
      at = end + 2;
    }
    return all;
  }

  HttpResponse response;
  std::string stream;
  bool streaming = false, ended = false;
  std::function<void()> gone;
};

class ServiceTest : public testing::Test {
 protected:
  static const txt::Tokenizer& tokenizer() {
    static const auto loaded = txt::load_tokenizer(OSTRO_SOURCE_DIR "/models/tiny-mixtral");
    return *loaded;
  }
  std::shared_ptr<FakeReply> request(const std::string& path, const json& body,
                                     const std::string& method = "POST") {
    auto reply = std::make_shared<FakeReply>();
    service.handle({.method = method,
                    .path = path,
                    .authorization = "",
                    .id = "r1",
                    .body = body.is_string() ? body.get<std::string>() : body.dump()},
                   reply);
    return reply;
  }
  std::shared_ptr<FakeReply> complete(json fields = json::object()) {
    json body = {{"prompt", "Once upon"}};
    body.update(fields);
    return request("/v1/completions", body);
  }
  std::vector<TokenId> ids(const std::string& text) {
    return tokenizer().encode(text, {.add_special_tokens = false});
  }
  // The next tokens of a request's sequence.
  void respond(RequestId id, std::vector<TokenId> tokens, FinishReason finish = FinishReason::none,
               int sequence = 0, bool last = true) {
    Response r{.id = id, .sequence = sequence, .tokens = tokens, .finish = finish};
    r.log_probs.assign(tokens.size(), -0.5f);
    r.is_final = finish != FinishReason::none;
    r.is_last = r.is_final && last;
    service.deliver({r}, {});
  }

  FakeGenerator generator;
  txt::ChatTemplate chat = txt::ChatTemplate::mistral({.bos = "<s>", .eos = "</s>"});
  ServedModel model{.name = "tiny",
                    .info = generator.info,
                    .tokenizer = tokenizer(),
                    .chat = chat,
                    .max_tokens = 128};
  Log log;
  Service service{ServiceOptions{.version = "1.2.3"}, model, generator, log};
};

TEST_F(ServiceTest, TranslatesEveryFieldForTheExecutor) {
  complete({{"max_tokens", 9},
            {"temperature", 0.5},
            {"top_p", 0.25},
            {"top_k", 7},
            {"min_p", 0.125},
            {"seed", -1},
            {"n", 2},
            {"presence_penalty", 1.5},
            {"frequency_penalty", -1.5},
            {"repetition_penalty", 1.25},
            {"logit_bias", {{"5", -3}}},
            {"user", "me"},
            {"cache_salt", "salt"},
            {"logprobs", 4}});
  ASSERT_EQ(generator.requests.size(), 1u);
  const Request& r = generator.requests[0];
  EXPECT_EQ(r.prompt, tokenizer().encode("Once upon"));
  EXPECT_EQ(r.max_new_tokens, 9);
  EXPECT_EQ(r.sampling.temperature, 0.5f);
  EXPECT_EQ(r.sampling.top_p, 0.25f);
  EXPECT_EQ(r.sampling.top_k, 7);
  EXPECT_EQ(r.sampling.min_p, 0.125f);
  EXPECT_EQ(r.sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(r.num_return_sequences, 2);
  EXPECT_EQ(r.sampling.presence_penalty, 1.5f);
  EXPECT_EQ(r.sampling.frequency_penalty, -1.5f);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<TokenId, float>>{{5, -3.f}}));
  EXPECT_EQ(r.user, "me");
  EXPECT_EQ(r.cache_salt, "salt");
  EXPECT_EQ(r.log_probs, 4);
  EXPECT_EQ(r.end_ids, std::vector<TokenId>{2});
}

TEST_F(ServiceTest, DefaultsAreOpenAis) {
  complete();
  const Request& r = generator.requests.at(0);
  EXPECT_EQ(r.max_new_tokens, 16);
  EXPECT_EQ(r.sampling.temperature, 1);
  EXPECT_EQ(r.sampling.top_k, 0);
  EXPECT_EQ(r.sampling.top_p, 1);
  EXPECT_FALSE(r.log_probs);
  request("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}});
  const Request& c = generator.requests.at(1);
  EXPECT_EQ(std::int64_t(c.prompt.size()) + c.max_new_tokens, 128);  // as long as there is room
}

TEST_F(ServiceTest, AStopStringOverTokensDoesNotShow) {
  for (const bool stream : {false, true}) {
    const auto reply = complete({{"stop", {"upon a time"}}, {"stream", stream}, {"logprobs", 0}});
    const auto id = RequestId(generator.requests.size());
    for (TokenId t : ids("Well, once upon a time there")) respond(id, {t});
    EXPECT_TRUE(generator.cancelled.contains(id)) << "the executor would go on";
    ASSERT_TRUE(reply->ended);
    std::string text, tokens;
    if (stream) {
      EXPECT_EQ(reply->events().back(), "[DONE]");
      for (const json& e : reply->events()) {
        if (!e.is_object()) continue;
        text += e["choices"][0]["text"].get<std::string>();
        for (const json& t : e["choices"][0]["logprobs"]["tokens"]) tokens += t.get<std::string>();
      }
    } else {
      text = reply->choice()["text"];
      EXPECT_EQ(reply->choice()["finish_reason"], "stop");
      for (const json& t : reply->choice()["logprobs"]["tokens"]) tokens += t.get<std::string>();
    }
    EXPECT_EQ(text, " Well, once ");
    EXPECT_TRUE(text.starts_with(tokens)) << tokens;
  }
}

TEST_F(ServiceTest, WhatWasHeldBackForAStopStringComesAtTheEnd) {
  const auto reply = complete({{"stop", "time machine"}});
  std::vector<TokenId> all = ids("a time");
  respond(1, all);
  respond(1, {2}, FinishReason::end_id);
  EXPECT_EQ(reply->choice()["text"], " a time");
  EXPECT_EQ(reply->choice()["finish_reason"], "stop");
  EXPECT_EQ(json::parse(reply->response.body)["usage"]["completion_tokens"], all.size() + 1);
}

TEST_F(ServiceTest, AChatStreamHasItsRoleFirstAndUsageLast) {
  const auto reply =
      request("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                                       {"stream", true},
                                       {"stream_options", {{"include_usage", true}}}});
  EXPECT_TRUE(reply->streaming);
  respond(1, ids("Hello"), FinishReason::length);
  const std::vector<json> events = reply->events();
  EXPECT_EQ(events[0]["choices"][0]["delta"], (json{{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(events[0]["id"], "chatcmpl-r1");
  EXPECT_EQ(events[1]["choices"][0]["delta"], (json{{"content", "Hello"}}));
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(events[1]["usage"].is_null());
  EXPECT_EQ(events[2]["choices"], json::array());
  EXPECT_EQ(events[2]["usage"]["completion_tokens"], ids("Hello").size());
  EXPECT_EQ(events[3], "[DONE]");
}

TEST_F(ServiceTest, ChoicesOfSeveralPromptsAreInOrder) {
  const auto reply = complete({{"prompt", {"one", "two"}}, {"n", 2}});
  EXPECT_EQ(generator.requests.size(), 2u);
  respond(2, ids("d"), FinishReason::length, 1, false);
  respond(1, ids("b"), FinishReason::end_id, 1, false);
  respond(2, ids("c"), FinishReason::length, 0, true);
  EXPECT_FALSE(reply->ended);
  respond(1, ids("a"), FinishReason::length, 0, true);
  ASSERT_TRUE(reply->ended);
  const char* texts[] = {" a", "", " c", " d"};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(reply->choice(i)["index"], i);
    EXPECT_EQ(reply->choice(i)["text"], texts[i]);
    EXPECT_EQ(reply->choice(i)["finish_reason"], i == 1 ? "stop" : "length");
  }
}

TEST_F(ServiceTest, AChoiceThatAStopStringEndsIsNotComputedFurther) {
  for (const bool stream : {false, true}) {
    const auto reply = complete({{"stop", {"time"}}, {"n", 3}, {"stream", stream}});
    const auto id = RequestId(generator.requests.size());
    for (TokenId t : ids("once upon a time there")) respond(id, {t}, FinishReason::none, 1);
    EXPECT_EQ(generator.ended_sequences.count({id, 1}), 1u);
    respond(id, {}, FinishReason::cancelled, 1, false);  // the executor's last word on it
    EXPECT_FALSE(reply->ended);
    respond(id, ids("one"), FinishReason::length, 0, false);
    EXPECT_EQ(generator.ended_sequences.count({id, 0}), 0u) << "it has ended by itself";
    EXPECT_FALSE(generator.cancelled.contains(id));
    respond(id, ids("two"), FinishReason::length, 2);
    EXPECT_TRUE(reply->ended);
    EXPECT_EQ(reply->response.status, 200);
  }
}

TEST_F(ServiceTest, AClientThatLeavesCancels) {
  const auto reply = complete({{"stream", true}, {"prompt", {"one", "two"}}});
  respond(1, ids("word"));
  const std::string before = reply->stream;
  reply->gone();
  EXPECT_EQ(generator.cancelled, (std::set<RequestId>{1, 2}));
  respond(1, ids("more"));
  respond(1, {}, FinishReason::cancelled);
  EXPECT_EQ(reply->stream, before);
  EXPECT_FALSE(reply->ended);
}

TEST_F(ServiceTest, RefusalsOfTheExecutorHaveTheirStatus) {
  const std::tuple<SubmitStatus, int, const char*> all[] = {
      {SubmitStatus::queue_full, 429, "rate_limit_error"},
      {SubmitStatus::shut_down, 503, "service_unavailable_error"},
      {SubmitStatus::invalid, 400, "invalid_request_error"},
      {SubmitStatus::unsupported, 501, "server_error"},
      {SubmitStatus::failed, 500, "server_error"}};
  for (const auto& [status, http, type] : all) {
    generator.refusal = {.status = status, .message = "words of the executor"};
    const auto reply = complete({{"stream", true}});
    EXPECT_EQ(reply->response.status, http);
    EXPECT_EQ(reply->error()["type"], type);
    EXPECT_FALSE(reply->streaming);
    const bool told =
        reply->error()["message"].get<std::string>().find("words") != std::string::npos;
    EXPECT_EQ(told, http == 429 || http == 400 || http == 501);
    const auto& headers = reply->response.headers;
    EXPECT_EQ(headers.empty() ? "" : headers[0].first,
              http == 429 || http == 503 ? "Retry-After" : "");
  }
}

TEST_F(ServiceTest, PromptsThatWereTakenAreGivenBackIfOneIsNot) {
  generator.refusal = {.status = SubmitStatus::queue_full};
  generator.accepts = 2;
  EXPECT_EQ(complete({{"prompt", {"a", "b", "c"}}})->response.status, 429);
  EXPECT_EQ(generator.cancelled, (std::set<RequestId>{1, 2}));
  respond(1, {}, FinishReason::cancelled);  // of nobody
}

TEST_F(ServiceTest, AGuideIsCompiledElsewhereBeforeItsRequestIsSubmitted) {
  std::function<void()> work, then;
  bool room = true;
  service.set_elsewhere([&](std::function<void()> w, std::function<void()> t) {
    work = std::move(w), then = std::move(t);
    return room;
  });
  const json guided = {{"guided_regex", "a+"}};
  const auto reply = complete(guided);
  EXPECT_TRUE(generator.prepared.empty());
  work();
  ASSERT_EQ(generator.prepared.size(), 1u);
  EXPECT_EQ(generator.prepared[0].text, "a+");
  EXPECT_TRUE(generator.requests.empty());
  then();
  ASSERT_EQ(generator.requests.size(), 1u);
  respond(1, ids("a"), FinishReason::dead_end);
  EXPECT_EQ(reply->choice()["finish_reason"], "dead_end");

  const auto left = complete(guided);
  left->gone();
  work(), then();
  EXPECT_EQ(generator.prepared.size(), 1u);
  EXPECT_FALSE(left->ended);

  generator.preparation = {.status = SubmitStatus::invalid, .id = 0, .message = "Unclosed"};
  const auto bad = complete(guided);
  work(), then();
  EXPECT_EQ(bad->response.status, 400);
  EXPECT_EQ(bad->error()["message"], "Unclosed");

  room = false;
  EXPECT_EQ(complete(guided)->response.status, 429);
  room = true;
  generator.preparation = {};
  const auto late = complete(guided);
  work();
  service.end_all({500, "the engine has stopped"});
  then();
  EXPECT_EQ(late->response.status, 500);
  EXPECT_EQ(generator.requests.size(), 1u);
}

TEST_F(ServiceTest, AnErrorEndsAStreamWithAnEvent) {
  const auto stream = complete({{"stream", true}});
  const auto whole = complete();
  respond(1, ids("word"));
  respond(1, {}, FinishReason::error);
  respond(2, {}, FinishReason::timed_out);
  EXPECT_EQ(stream->events().back()["error"]["message"], "the engine has stopped");
  EXPECT_TRUE(stream->ended);
  EXPECT_EQ(whole->response.status, 504);
}

TEST_F(ServiceTest, ABugSaysNothingOfItsInside) {
  generator.throws = true;
  const auto reply = complete();
  EXPECT_EQ(reply->response.status, 500);
  EXPECT_EQ(reply->response.body.find("secret"), std::string::npos);
}

TEST_F(ServiceTest, DrainingRefusesNewRequestsAndFinishesOld) {
  const auto old = complete();
  service.drain();
  EXPECT_EQ(complete()->response.status, 503);
  EXPECT_EQ(request("/health", "", "GET")->response.status, 200);
  EXPECT_EQ(request("/health/ready", "", "GET")->response.status, 503);
  respond(1, ids("word"), FinishReason::length);
  EXPECT_EQ(old->response.status, 200);
  const auto another = complete();
  service.end_all(ApiError(503, "going"));
  EXPECT_EQ(another->response.status, 503);
}

TEST_F(ServiceTest, KeysGuardAllButHealthAndThePage) {
  Service guarded({.version = "1", .api_keys = {"k1", "k2"}}, model, generator, log);
  const auto status = [&](const char* path, const char* authorization) {
    auto reply = std::make_shared<FakeReply>();
    guarded.handle(
        {.method = "GET", .path = path, .authorization = authorization, .id = "x", .body = ""},
        reply);
    return reply->response.status;
  };
  for (const char* path : {"/v1/models", "/v1/models/tiny", "/metrics", "/version"}) {
    EXPECT_EQ(status(path, ""), 401) << path;
    EXPECT_EQ(status(path, "Bearer k2"), 200) << path;
  }
  EXPECT_EQ(status("/v1/completions", ""), 401);
  EXPECT_EQ(status("/nothing", ""), 401);
  EXPECT_EQ(status("/health", ""), 200);
  EXPECT_EQ(status("/health/ready", ""), 200);
  for (const char* path : {"/", "/page.css", "/page.js"}) EXPECT_EQ(status(path, ""), 200) << path;
}

TEST_F(ServiceTest, MetricsAreInPrometheusForm) {
  complete();
  Response r{.id = 1,
             .tokens = ids("word"),
             .is_final = true,
             .is_last = true,
             .finish = FinishReason::length};
  r.statistics = {.started_s = 0.01, .first_token_s = 0.02, .finished_s = 0.5, .output_tokens = 4};
  service.deliver({r}, {IterationStatistics{.step_s = 0.003}});
  service.record({.id = "a",
                  .peer = "p",
                  .method = "GET",
                  .path = "/unheard/of",
                  .status = 404,
                  .complete = true});
  const std::string text = request("/metrics", "", "GET")->response.body;
  for (const char* line :
       {"ostro_requests_waiting 3\n", "ostro_requests_running 2\n", "ostro_step_seconds_count 1\n",
        "ostro_step_seconds_bucket{le=\"0.0025\"} 0\n",
        "ostro_step_seconds_bucket{le=\"0.005\"} 1\n", "ostro_step_seconds_bucket{le=\"+Inf\"} 1\n",
        "ostro_time_to_first_token_seconds_sum 0.02\n",
        "ostro_time_per_output_token_seconds_sum 0.16\n",
        "ostro_http_requests_total{route=\"other\",status=\"404\"} 1\n"})
    EXPECT_NE(text.find(line), text.npos) << line << text;
}

}  // namespace
}  // namespace ostro::server
