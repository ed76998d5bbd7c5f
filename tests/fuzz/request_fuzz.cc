// The body of a request from anywhere, on every route that reads one: the answer is a whole one of
// the right form, or a refusal that is the client's fault. The first byte chooses the route.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "guide/choice_list.h"
#include "guide/limits.h"
#include "server/service.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace ostro::server {
namespace {

constexpr std::int64_t kVocab = 8192;
constexpr std::int64_t kMostNewTokens = 8;  // that the engine's stand-in makes up

void require(bool good, std::string_view what, std::string_view shown = {}) {
  if (good) return;
  std::fprintf(stderr, "%.*s: %.*s\n", int(what.size()), what.data(), int(shown.size()),
               shown.data());
  std::abort();
}

// Takes every request and makes up tokens. Of a guide it does what is done before xgrammar sees it.
class StandIn : public Generator {
 public:
  Submission submit(Request r) override {
    requests_.push_back(std::move(r));
    return {.id = RequestId(requests_.size())};
  }
  Preparation prepare(const Guide& g) override {
    const guide::Guide inner{.kind = guide::Kind(g.kind), .text = g.text, .at_start = g.at_start};
    try {
      guide::check_limits(inner);
      if (inner.kind == guide::Kind::choice) guide::grammar_of_choices(inner.text);
    } catch (const InvalidArgument& e) {
      return {.status = SubmitStatus::invalid, .message = e.what()};
    }
    return {};
  }
  std::shared_ptr<const CompiledGuide> find_prepared(const Guide&) override { return nullptr; }
  std::vector<Response> await_responses(std::chrono::milliseconds) override { return {}; }
  bool cancel(RequestId) override { return true; }
  bool cancel(RequestId, std::int32_t) override { return true; }
  std::string failure() const override { return {}; }
  ExecutorStatistics statistics() const override { return {}; }
  std::vector<IterationStatistics> take_iteration_statistics() override { return {}; }

  // All responses to all requests, which are forgotten.
  std::vector<Response> answers(std::size_t seed) {
    std::vector<Response> all;
    for (std::size_t i = 0; i < requests_.size(); ++i)
      for (std::int32_t s = 0; s < requests_[i].num_return_sequences; ++s)
        all.push_back(answer(RequestId(i + 1), s, requests_[i], seed + std::size_t(s)));
    requests_.clear();
    return all;
  }

 private:
  static Response answer(RequestId id, std::int32_t sequence, const Request& r, std::size_t seed) {
    Response response{.id = id, .sequence = sequence};
    const auto alternatives = [&](std::optional<std::int32_t> count) {
      return std::vector<TokenLogProb>(std::size_t(count.value_or(0)),
                                       {TokenId(seed % kVocab), -1});
    };
    for (std::int64_t i = 0; i < std::min(r.max_new_tokens, kMostNewTokens); ++i) {
      response.tokens.push_back(TokenId((seed + std::size_t(i) * 2654435761u) % kVocab));
      if (!r.log_probs) continue;
      response.log_probs.push_back(-1);
      response.alternatives.push_back(alternatives(r.log_probs));
    }
    if (r.prompt_log_probs && sequence == 0) {
      response.prompt_log_probs.assign(r.prompt.size() - 1, -1);
      response.prompt_alternatives.assign(r.prompt.size() - 1, alternatives(r.prompt_log_probs));
    }
    response.is_final = true;
    response.is_last = sequence + 1 == r.num_return_sequences;
    response.finish = FinishReason::length;
    return response;
  }

  std::vector<Request> requests_;
};

// Checks the order of the calls and keeps what was sent.
struct Checked : Reply {
  void send(HttpResponse r) override {
    require(!streaming && !ended, "send() after another answer");
    response = std::move(r), ended = true;
  }
  void open_stream() override {
    require(!streaming && !ended, "open_stream() after another answer");
    streaming = true;
  }
  void write(std::string_view events) override {
    require(streaming && !ended, "write() outside of a stream");
    stream += events;
  }
  void close_stream() override {
    require(streaming && !ended, "close_stream() outside of a stream");
    ended = true;
  }
  void when_gone(std::function<void()>) override {}

  HttpResponse response;
  std::string stream;
  bool streaming = false, ended = false;
};

void check_stream(std::string_view stream) {
  constexpr std::string_view kDone = "data: [DONE]\n\n";
  require(stream.ends_with(kDone), "a stream without its end", stream);
  stream.remove_suffix(kDone.size());
  while (!stream.empty()) {
    const std::size_t end = stream.find("\n\n");
    require(end != stream.npos && stream.starts_with("data: "), "no event", stream);
    require(nlohmann::json::accept(stream.substr(6, end - 6)), "an event that is not JSON", stream);
    stream.remove_prefix(end + 2);
  }
}

void check(const Checked& reply) {
  require(reply.ended, "a request without an answer");
  if (reply.streaming) return check_stream(reply.stream);
  const auto body = nlohmann::json::parse(reply.response.body, nullptr, false);
  require(!body.is_discarded(), "an answer that is not JSON", reply.response.body);
  const std::set<int> good{200, 400, 404};
  require(good.contains(reply.response.status), "a status that no body may bring",
          reply.response.body);
  require(body.contains("error") == (reply.response.status != 200), "status and body disagree",
          reply.response.body);
}

constexpr const char* kJinja =
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}{% "
    "endif %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' if m['role'] == 'user' else m['content'] }}"
    "{% endfor %}";

struct Server {
  explicit Server(const txt::ChatTemplate& t) : chat(t) {}

  txt::ChatTemplate chat;
  ModelInfo info{.vocab = kVocab, .context = 4096, .end_ids = {2}};
  static const txt::Tokenizer& tokenizer() {
    static const auto loaded = txt::load_tokenizer(OSTRO_SOURCE_DIR "/models/tiny-mixtral");
    return *loaded;
  }
  ServedModel model{
      .name = "tiny", .info = info, .tokenizer = tokenizer(), .chat = chat, .max_tokens = 4096};
  StandIn generator;
  Log log{LogLevel::error, [](LogLevel, std::string_view line) {
            std::fprintf(stderr, "%.*s\n", int(line.size()), line.data());
          }};
  Service service{ServiceOptions{.version = "1"}, model, generator, log};
};

void handle(Server& server, const char* path, std::string body) {
  const auto reply = std::make_shared<Checked>();
  const std::size_t size = body.size();
  server.service.handle(
      {.method = "POST", .path = path, .authorization = "", .id = "r", .body = std::move(body)},
      reply);
  server.service.deliver(server.generator.answers(size), {});
  check(*reply);
}

}  // namespace
}  // namespace ostro::server

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using ostro::server::Server;
  const ostro::txt::ChatTemplate::Ends ends{.bos = "<s>", .eos = "</s>"};
  static Server plain{ostro::txt::ChatTemplate::mistral(ends)};
  static Server jinja{ostro::txt::ChatTemplate::from_jinja(ostro::server::kJinja, ends)};
  if (size == 0) return 0;
  const std::string body(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 8) {  // seeds begin with a digit
    case 0:
      ostro::server::handle(jinja, "/tokenize", body);
      break;
    case 1:
      ostro::server::handle(plain, "/detokenize", body);
      break;
    case 2:
      ostro::server::handle(jinja, "/v1/chat/completions", body);
      break;
    case 3:
    case 4:
      ostro::server::handle(plain, "/v1/chat/completions", body);
      break;
    default:
      ostro::server::handle(plain, "/v1/completions", body);
  }
  return 0;
}
