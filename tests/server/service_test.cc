#include "server/service.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "server/api_error.h"
#include "server/fake_service.h"

namespace ostro::server {
namespace {

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
      const json choice = reply->choice();  // it must outlive the loop
      for (const json& t : choice["logprobs"]["tokens"]) tokens += t.get<std::string>();
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

const json kToolFields = json::parse(R"({"tools": [{"type": "function", "function": {"name": "f",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]})");

struct CallTest : ServiceTest {
  // The answer to a chat with the tool, of a model that says this and ends so, or not at all.
  std::shared_ptr<FakeReply> answer(const std::string& says, const json& fields,
                                    FinishReason finish) {
    json body = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"logprobs", true}};
    body.update(kToolFields);
    body.update(fields);
    auto reply = request("/v1/chat/completions", body);
    const auto id = RequestId(generator.requests.size());
    EXPECT_FALSE(generator.requests.back().guide);
    EXPECT_NE(tokenizer().decode(generator.requests.back().prompt).find("[AVAILABLE_TOOLS] [{"),
              std::string::npos);
    for (TokenId t : ids(says)) respond(id, {t});
    if (finish != FinishReason::none) respond(id, {2}, finish);
    EXPECT_TRUE(reply->ended);
    return reply;
  }

  // "content|f{...}+f{...}|finish_reason", the same of a stream and of a whole answer.
  std::string answers(const std::string& says, json fields = json::object(),
                      FinishReason finish = FinishReason::end_id) {
    const json whole = answer(says, fields, finish)->choice();
    std::string content, calls;
    if (whole["message"]["content"].is_string()) content = whole["message"]["content"];
    for (const json& call : whole["message"].value("tool_calls", json::array())) add(call, calls);
    const std::string all = content + '|' + calls + '|' + std::string(whole["finish_reason"]);

    content.clear(), calls.clear();
    fields["stream"] = true;
    std::size_t index = 0, tokens = 0;
    json last;
    for (const json& event : answer(says, fields, finish)->events()) {
      if (!event.is_object()) continue;
      last = event["choices"][0];
      content += last["delta"].value("content", "");
      for (const json& call : last["delta"].value("tool_calls", json::array())) {
        if (call.contains("id")) index = call["index"];
        EXPECT_EQ(call["index"], index);
        add(call, calls);
      }
      if (last["logprobs"].is_object()) tokens += last["logprobs"]["content"].size();
    }
    EXPECT_EQ(content + '|' + calls + '|' + std::string(last["finish_reason"]), all);
    EXPECT_EQ(tokens, whole["logprobs"]["content"].size());
    return all;
  }
  static void add(const json& call, std::string& calls) {
    if (call.contains("id")) {
      EXPECT_EQ(call["id"].get<std::string>().size(), 9u);
      EXPECT_EQ(call["type"], "function");
      calls += (calls.empty() ? "" : "+") + std::string(call["function"]["name"]);
    }
    calls += call["function"]["arguments"];
  }
};

const std::string kSaysCall = R"(Let me see.[TOOL_CALLS] [{"name": "f", "arguments": {"x": 3}})";

TEST_F(CallTest, CallsThatTheModelMakesByItself) {
  EXPECT_EQ(answers(kSaysCall + "]"), R"(Let me see.|f{"x": 3}|tool_calls)");
  EXPECT_EQ(answers(kSaysCall + R"(, {"arguments": {}, "name": "f"}])"),
            R"(Let me see.|f{"x": 3}+f{}|tool_calls)");
  EXPECT_EQ(answers("[TOOL_CALLS]g{}"), "[TOOL_CALLS]g{}||stop");
}

TEST_F(CallTest, ACallIsStreamedWhileItIsWritten) {
  const auto reply = answer(kSaysCall + "]", {{"stream", true}}, FinishReason::end_id);
  std::vector<json> deltas;
  for (const json& event : reply->events())
    if (event.is_object() && event["choices"][0]["delta"].contains("tool_calls"))
      deltas.push_back(event["choices"][0]["delta"]["tool_calls"].at(0));
  ASSERT_GT(deltas.size(), 3u);
  EXPECT_EQ(deltas[0]["function"]["name"], "f");
  EXPECT_EQ(deltas[0]["function"]["arguments"], "{");
  EXPECT_EQ(deltas[1].dump(), R"({"function":{"arguments":"\""},"index":0})");
}

TEST_F(CallTest, CallsThatAreCutOff) {
  EXPECT_EQ(answers(R"([TOOL_CALLS][{"name": "f", "arguments": {"x")", json::object(),
                    FinishReason::length),
            R"(|f{"x"|length)");
  EXPECT_EQ(answers(R"([TOOL_CALLS][{"name": "f")", json::object(), FinishReason::length),
            R"([TOOL_CALLS][{"name": "f"||length)");
  EXPECT_EQ(answers(kSaysCall + "]", {{"stop", "3}"}}), R"(Let me see.|f{"x": |stop)");
  EXPECT_EQ(answers(kSaysCall + "] So.", {{"stop", " So"}}), R"(Let me see.|f{"x": 3}|tool_calls)");
}

TEST_F(CallTest, CallsEndAnAnswerThatGoesOnOtherwise) {
  const FinishReason none = FinishReason::none;  // the model would go on
  EXPECT_EQ(answers(kSaysCall + "] It is three, I think", json::object(), none),
            R"(Let me see.|f{"x": 3}|stop)");
  const std::string two = R"([TOOL_CALLS]f{"x": 3}[TOOL_CALLS]f{})";
  EXPECT_EQ(answers(two), R"(|f{"x": 3}+f{}|tool_calls)");
  EXPECT_EQ(answers(two, {{"parallel_tool_calls", false}}, none), R"(|f{"x": 3}|tool_calls)");
}

TEST_F(CallTest, EachSequenceMakesItsOwnCalls) {
  json body = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"n", 2}};
  body.update(kToolFields);
  const auto reply = request("/v1/chat/completions", body);
  for (TokenId t : ids("[TOOL_CALLS]f{} and")) {
    respond(1, {t}, FinishReason::none, 0);
    respond(1, ids("Hm."), FinishReason::none, 1);
  }
  EXPECT_TRUE(generator.ended_sequences.contains({1, 0}));
  respond(1, {2}, FinishReason::end_id, 1);
  EXPECT_EQ(reply->choice(0)["message"]["tool_calls"].size(), 1u);
  EXPECT_EQ(reply->choice(0)["finish_reason"], "stop");
  EXPECT_EQ(reply->choice(1)["message"]["content"].get<std::string>().substr(0, 3), "Hm.");
}

TEST_F(ServiceTest, AForcedCallIsGuidedAndItsPromptHasTheMarker) {
  json body = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"tool_choice", "required"}};
  body.update(kToolFields);
  const auto reply = request("/v1/chat/completions", body);
  ASSERT_EQ(generator.requests.size(), 1u);
  EXPECT_EQ(generator.requests[0].guide->kind, GuideKind::json_schema);
  EXPECT_TRUE(tokenizer().decode(generator.requests[0].prompt).ends_with("[/INST][TOOL_CALLS]"));
  for (TokenId t : ids(R"([{"name": "f", "arguments": {"x": 3)")) respond(1, {t});
  respond(1, {}, FinishReason::length);
  const json choice = reply->choice();
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"x\": 3");
}

TEST_F(ServiceTest, ResultsOfToolsGoToTheTemplate) {
  const json talk = json::parse(R"([
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": null, "refusal": null, "tool_calls":
       [{"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
      {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "7"}]}])");
  request("/v1/chat/completions", {{"messages", talk}});
  ASSERT_EQ(generator.requests.size(), 1u);
  EXPECT_NE(tokenizer()
                .decode(generator.requests[0].prompt)
                .find(R"([TOOL_RESULTS] {"content": 7, "call_id": "abcdefghi"}[/TOOL_RESULTS])"),
            std::string::npos);
  const auto refused = [&](const char* pointer, json value, const std::string& param,
                           const char* words) {
    json bad = talk;
    if (value.is_discarded())
      bad[json::json_pointer(pointer).parent_pointer()].erase(json::json_pointer(pointer).back());
    else
      bad[json::json_pointer(pointer)] = std::move(value);
    const auto reply = request("/v1/chat/completions", {{"messages", bad}});
    EXPECT_EQ(reply->response.status, 400);
    EXPECT_EQ(reply->error()["param"], param);
    EXPECT_NE(reply->error()["message"].get<std::string>().find(words), std::string::npos)
        << reply->error();
  };
  const json gone = json(json::value_t::discarded);
  const std::string call = "messages[1].tool_calls[0]";
  refused("/2/tool_call_id", gone, "messages[2].tool_call_id", "missing");
  refused("/2/tool_call_id", "abc", "messages[2].tool_call_id", "\"abc\", which is of no call");
  refused("/3", talk[2], "messages[3].tool_call_id", "has its result already");
  refused("/3", talk[1], "messages[3].tool_calls[0].id", "an earlier call");
  refused("/1/tool_calls", json::array(), "messages[1].tool_calls", "1 to 128");
  refused("/1/tool_calls/0/id", "", call + ".id", "1 to 64");
  refused("/1/tool_calls/0/id", std::string(65, 'x'), call + ".id", "1 to 64");
  refused("/1/tool_calls/0/type", "web", call + ".type", "web");
  refused("/1/tool_calls/0/function", gone, call + ".function", "missing");
  refused("/1/tool_calls/0/function/name", "a b", call + ".function.name", "a b");
  refused("/1/tool_calls/0/function/arguments", json::object(), call + ".function.arguments",
          "a string");
  refused("/1/tool_calls/0/function/arguments", "{", call + ".function.arguments", "arguments");
  refused("/1/tool_calls/0/function/arguments", "[]", call + ".function.arguments", "object");
  refused("/0/tool_calls", talk[1]["tool_calls"], "messages[0].tool_calls", "does not support");
  refused("/0/content", gone, "messages[0].content", "missing");
}

TEST_F(ServiceTest, BeamsAreSearchedByVllmsNames) {
  complete({{"use_beam_search", true},
            {"n", 2},
            {"best_of", 4},
            {"length_penalty", 0.5},
            {"early_stopping", "never"}});
  const Request& r = generator.requests.at(0);
  EXPECT_EQ(r.sampling.num_beams, 4);
  EXPECT_EQ(r.num_return_sequences, 2);
  EXPECT_EQ(r.sampling.length_penalty, 0.5f);
  EXPECT_EQ(r.sampling.early_stopping, EarlyStopping::never);
  EXPECT_EQ(r.sampling.temperature, 0);
  complete({{"use_beam_search", true}, {"n", 3}, {"early_stopping", true}, {"temperature", 0}});
  EXPECT_EQ(generator.requests.at(1).sampling.num_beams, 3);
  EXPECT_EQ(generator.requests.at(1).sampling.early_stopping, EarlyStopping::yes);
  request("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                                   {"use_beam_search", true},
                                   {"beam_width", 5}});
  EXPECT_EQ(generator.requests.at(2).sampling.num_beams, 5);
  EXPECT_EQ(generator.requests.at(2).sampling.early_stopping, EarlyStopping::no);
  complete({{"use_beam_search", false},
            {"best_of", 1},
            {"length_penalty", 1.0},
            {"early_stopping", false}});
  EXPECT_EQ(generator.requests.at(3).sampling.num_beams, 1);
  EXPECT_EQ(generator.requests.at(3).sampling.temperature, 1);

  const std::tuple<json, const char*, const char*> all[] = {
      {{{"best_of", 2}}, "best_of", "supports only 1"},
      {{{"beam_width", 2}}, "beam_width", "goes with"},
      {{{"length_penalty", 2}}, "length_penalty", "goes with"},
      {{{"early_stopping", true}}, "early_stopping", "goes with"},
      {{{"use_beam_search", true}, {"stream", true}}, "stream", "not streamed"},
      {{{"use_beam_search", true}, {"stop", "x"}}, "stop", "search"},
      {{{"use_beam_search", true}, {"guided_regex", "x"}}, "use_beam_search", "guided"},
      {{{"use_beam_search", true}, {"temperature", 0.5}}, "temperature", "it is 0.5"},
      {{{"use_beam_search", true}, {"top_p", 0.5}}, "top_p", "must be 1"},
      {{{"use_beam_search", true}, {"top_k", 5}}, "top_k", "it is 5"},
      {{{"use_beam_search", true}, {"min_p", 0.5}}, "min_p", "it is 0.5"},
      {{{"use_beam_search", true}, {"n", 3}, {"best_of", 2}}, "n", "\"n\" is 3; there are 2"},
      {{{"use_beam_search", true}, {"beam_width", 3}, {"best_of", 2}}, "best_of", "is 3 and"},
      {{{"use_beam_search", true}, {"beam_width", 129}}, "beam_width", "1 to 128"},
      {{{"use_beam_search", true}, {"early_stopping", 3}}, "early_stopping", "\"never\""},
      {{{"use_beam_search", true}, {"early_stopping", true}}, "early_stopping", "one beam"},
      {{{"use_beam_search", true}, {"length_penalty", 2}}, "length_penalty", "one beam"},
  };
  for (const auto& [fields, param, words] : all) {
    const auto reply = complete(fields);
    EXPECT_EQ(reply->response.status, 400) << fields;
    EXPECT_EQ(reply->error()["param"], param);
    EXPECT_NE(reply->error()["message"].get<std::string>().find(words), std::string::npos)
        << reply->error();
  }
}

TEST_F(ServiceTest, ObjectsOfTooManyKeysAreRefused) {
  json bias = json::object();
  for (std::size_t i = 0; i <= kMostUntrustedKeys; ++i) bias[std::to_string(i)] = 1;
  const auto reply = complete({{"logit_bias", bias}});
  EXPECT_EQ(reply->response.status, 400);
  EXPECT_EQ(reply->error()["message"], "the body has an object of more than 8192 keys");
}

TEST_F(ServiceTest, ToolsDoNotGoWithAnotherGuide) {
  json body = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"guided_regex", "a"}};
  body.update(kToolFields);
  EXPECT_EQ(request("/v1/chat/completions", body)->error()["param"], "tools");
  body["tool_choice"] = "none";
  EXPECT_FALSE(request("/v1/chat/completions", body)->ended);
  ASSERT_EQ(generator.requests.size(), 1u);
  EXPECT_EQ(tokenizer().decode(generator.requests[0].prompt).find("TOOLS"), std::string::npos);
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
  generator.preparation.guide = std::make_shared<CompiledGuide>();
  const auto reply = complete(guided);
  EXPECT_TRUE(generator.prepared.empty());
  work();
  ASSERT_EQ(generator.prepared.size(), 1u);
  EXPECT_EQ(generator.prepared[0].text, "a+");
  EXPECT_TRUE(generator.requests.empty());
  then();
  ASSERT_EQ(generator.requests.size(), 1u);
  EXPECT_EQ(generator.requests[0].compiled_guide, generator.preparation.guide);
  respond(1, ids("a"), FinishReason::dead_end);
  EXPECT_EQ(reply->choice()["finish_reason"], "dead_end");

  const auto left = complete(guided);
  left->gone();
  work(), then();
  EXPECT_EQ(generator.prepared.size(), 1u);
  EXPECT_FALSE(left->ended);

  generator.preparation = {.status = SubmitStatus::invalid, .message = "Unclosed"};
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

TEST_F(ServiceTest, AKnownGuideDoesNotWaitBehindOthers) {
  service.set_elsewhere([](const auto&, const auto&) { return false; });  // all are busy
  generator.known["a+"] = std::make_shared<CompiledGuide>();
  complete({{"guided_regex", "a+"}, {"prompt", {"one", "two"}}});
  ASSERT_EQ(generator.requests.size(), 2u);
  for (const Request& r : generator.requests) EXPECT_EQ(r.compiled_guide, generator.known["a+"]);
  const auto other = complete({{"guided_regex", "b+"}});
  EXPECT_EQ(other->response.status, 429);
  EXPECT_EQ(other->response.headers.at(0).first, "Retry-After");
  EXPECT_TRUE(generator.prepared.empty());
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
