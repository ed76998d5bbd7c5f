// The routes over an executor that does what the test says.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/json.h"
#include "server/service.h"

namespace ostro::server {

using nlohmann::json;

struct FakeGenerator : Generator {
  Submission submit(Request r) override {
    if (throws) throw std::runtime_error("the secret inside");
    if (refusal.status != SubmitStatus::accepted && requests.size() >= accepts) return refusal;
    requests.push_back(std::move(r));
    return {.id = RequestId(requests.size())};
  }
  Preparation prepare(const Guide& guide) override {
    prepared.push_back(guide);
    return preparation;
  }
  std::shared_ptr<const CompiledGuide> find_prepared(const Guide& guide) override {
    const auto it = known.find(guide.text);
    return it == known.end() ? nullptr : it->second;
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
  Preparation preparation;
  std::map<std::string, std::shared_ptr<const CompiledGuide>> known;
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

}  // namespace ostro::server
