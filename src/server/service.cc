#include "server/service.h"

#include <atomic>
#include <ctime>
#include <exception>

#include "base/error.h"
#include "server/api_error.h"
#include "server/page.h"

namespace ostro::server {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kModels = "/v1/models/";

HttpResponse json_response(const ordered_json& body) { return {.body = dump(body)}; }

ordered_json model_json(const ServedModel& model, std::int64_t created) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "ostro"},
          {"max_model_len", model.max_tokens}};
}

}  // namespace

Service::Service(const ServiceOptions& options, const ServedModel& model, Generator& generator,
                 const Log& log)
    : options_(options),
      keys_(options.api_keys),
      model_(model),
      generator_(generator),
      log_(log),
      started_(std::time(nullptr)) {}

const std::vector<Service::Entry>& Service::routes() {
  static const std::vector<Entry> all = {
      {"POST", "/v1/completions", &Service::completions, false},
      {"POST", "/v1/chat/completions", &Service::chat, false},
      {"GET", "/v1/models", &Service::models, false},
      {"POST", "/tokenize", &Service::tokenize, false},
      {"POST", "/detokenize", &Service::detokenize, false},
      {"GET", "/metrics", &Service::metrics, false},
      {"GET", "/version", &Service::version, false},
      {"GET", "/health", &Service::health, true},
      {"GET", "/health/ready", &Service::ready, true},
  };
  return all;
}

void Service::handle(HttpRequest request, std::shared_ptr<Reply> reply) {
  answer(text(request.id, " (", request.method, ' ', request.path, ')'), *reply,
         [&] { dispatch(request, reply); });
}

// Calls `handler`; what it throws is the answer.
void Service::answer(const std::string& request, Reply& reply,
                     const std::function<void()>& handler) {
  try {
    handler();
  } catch (const ApiError& e) {
    reply.send(error_response(e));
  } catch (const std::exception& e) {
    log_.error("request ", request, " met a bug in Ostro: ", e.what());
    reply.send(error_response({500, "the server failed; its log has the reason"}));
  }
}

void Service::dispatch(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  if (request.method == "GET")
    if (const PageFile* file = page_file(request.path))
      return reply->send({.content_type = std::string(file->content_type),
                          .body = std::string(file->text),
                          .headers = {{"Content-Security-Policy",
                                       "default-src 'self'; img-src data:; frame-ancestors 'none'"},
                                      {"Cache-Control", "no-cache"}}});
  const Entry* found = nullptr;
  for (const Entry& entry : routes())
    if (request.path == entry.path) found = &entry;
  static const Entry one_model{"GET", "/v1/models/", &Service::model, false};
  if (!found && request.path.starts_with(kModels)) found = &one_model;
  if (!found) {
    check_key(request);  // without a key the routes are nobody's business
    throw ApiError(404, "there is nothing at this path", "", "not_found");
  }
  if (!found->open_to_all) check_key(request);
  if (request.method != found->method) {
    HttpResponse response = error_response(
        {405, text(request.path, " takes ", found->method), "", "method_not_allowed"});
    response.headers.emplace_back("Allow", found->method);
    return reply->send(std::move(response));
  }
  (this->*found->route)(request, reply);
}

void Service::check_key(HttpRequest& request) const {
  if (keys_.required() && !keys_.find(request.authorization))
    throw ApiError(401, "the API key is missing or wrong: send \"Authorization: Bearer KEY\"", "",
                   "invalid_api_key");
}

void Service::completions(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  generate(parse_completion(request.body, model_), request, reply);
}

void Service::chat(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  generate(parse_chat(request.body, model_), request, reply);
}

void Service::generate(ApiRequest parsed, HttpRequest& request, std::shared_ptr<Reply>& reply) {
  if (draining_) throw ApiError(503, "the server is shutting down", "", "shutting_down");
  // Each key has its own users: nobody can take another's share by using a name of theirs.
  if (const auto key = keys_.find(request.authorization))
    parsed.base.user = text(*key, ':', parsed.base.user);
  parsed.base.time_limit = options_.time_limit;
  if (parsed.base.guide) {
    parsed.base.compiled_guide = generator_.find_prepared(*parsed.base.guide);
    if (!parsed.base.compiled_guide) return compile(std::move(parsed), request, reply);
  }
  start(std::move(parsed), request.id, reply);
}

// Compiles the request's guide before it starts. That may take seconds: not on this thread. What
// comes of it stays with the request: nothing that is compiled meanwhile can push it out.
void Service::compile(ApiRequest parsed, HttpRequest& request, std::shared_ptr<Reply>& reply) {
  struct Guided {
    ApiRequest request;
    std::string id;
    std::shared_ptr<Reply> reply;
    Preparation result = {};
    std::exception_ptr error = nullptr;
    std::atomic<bool> gone = false;
  };
  const auto guided = std::make_shared<Guided>(std::move(parsed), request.id, reply);
  reply->when_gone([weak = std::weak_ptr(guided)] {
    if (const auto client = weak.lock()) client->gone = true;
  });
  const bool taken = elsewhere_(
      [this, guided] {
        try {
          if (!guided->gone) guided->result = generator_.prepare(*guided->request.base.guide);
        } catch (...) {
          guided->error = std::current_exception();
        }
      },
      [this, guided] {
        if (guided->gone) return;
        answer(guided->id, *guided->reply, [&] {
          if (over_) throw *over_;
          if (guided->error) std::rethrow_exception(guided->error);
          if (!guided->result) throw refusal(guided->result.status, guided->result.message);
          guided->request.base.compiled_guide = guided->result.guide;
          start(std::move(guided->request), guided->id, guided->reply);
        });
      });
  if (!taken) throw ApiError(429, "too many guides are being compiled", "", "queue_full");
}

void Service::start(ApiRequest parsed, const std::string& request_id,
                    const std::shared_ptr<Reply>& reply) {
  const std::int64_t sequences = parsed.base.num_return_sequences;
  const auto generation =
      std::make_shared<Generation>(std::move(parsed), request_id, model_, generator_, reply);
  for (RequestId id : generation->submit())
    open_.emplace(id, Open{.generation = generation,
                           .sequences = sequences,
                           .last_response = std::vector<std::chrono::steady_clock::time_point>(
                               std::size_t(sequences))});
  generation->begin();
}

void Service::deliver(const std::vector<Response>& responses,
                      const std::vector<IterationStatistics>& steps) {
  for (const IterationStatistics& step : steps) metrics_.observe_step(step);
  const auto now = std::chrono::steady_clock::now();
  for (const Response& r : responses) {
    const auto it = open_.find(r.id);
    if (it == open_.end()) continue;  // of a submission that was taken back
    Open& open = it->second;
    if (!r.tokens.empty()) {
      auto& last = open.last_response.at(std::size_t(r.sequence));
      if (last.time_since_epoch().count() != 0)
        metrics_.observe_gap(std::chrono::duration<double>(now - last).count());
      last = now;
    }
    if (r.is_last) metrics_.observe_request(r.statistics, open.sequences);
    const std::shared_ptr<Generation> generation = open.generation;
    if (r.is_last) open_.erase(it);
    try {
      generation->take(r);
    } catch (const std::exception& e) {
      log_.error("answering a request met a bug in Ostro: ", e.what());
      generation->fail({500, "the server failed; its log has the reason"});
    }
  }
}

void Service::end_all(const ApiError& error) {
  over_ = error;
  for (const auto& [id, open] : open_) open.generation->fail(error);
}

void Service::record(const ExchangeRecord& r) {
  std::string route = "other";
  for (const Entry& entry : routes())
    if (r.path == entry.path) route = r.path;
  if (page_file(r.path)) route = "/";
  if (r.path.starts_with(kModels)) route = std::string(kModels);
  metrics_.count_exchange(route, r.status, r.complete);
  if (!log_.enabled(LogLevel::info)) return;
  log_.info(dump({{"request_id", r.id},
                  {"peer", r.peer},
                  {"method", r.method},
                  {"path", r.path},
                  {"status", r.status},
                  {"complete", r.complete},
                  {"bytes", r.body_bytes},
                  {"ms", double(std::int64_t(r.seconds * 1e5)) / 100}}));
}

void Service::models(HttpRequest&, std::shared_ptr<Reply>& reply) {
  reply->send(json_response(
      {{"object", "list"}, {"data", ordered_json::array({model_json(model_, started_)})}}));
}

void Service::model(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  if (request.path.substr(kModels.size()) != model_.name)
    throw ApiError(404, text("there is no such model; this server has \"", model_.name, '"'),
                   "model", "model_not_found");
  reply->send(json_response(model_json(model_, started_)));
}

void Service::tokenize(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  const std::vector<TokenId> ids = parse_tokenize(request.body, model_);
  reply->send(json_response(
      {{"count", ids.size()}, {"max_model_len", model_.max_tokens}, {"tokens", ids}}));
}

void Service::detokenize(HttpRequest& request, std::shared_ptr<Reply>& reply) {
  const std::vector<TokenId> ids = parse_detokenize(request.body, model_);
  reply->send(json_response({{"prompt", model_.tokenizer.decode(ids)}}));
}

void Service::health(HttpRequest&, std::shared_ptr<Reply>& reply) {
  reply->send(json_response({{"status", "ok"}}));
}

void Service::ready(HttpRequest&, std::shared_ptr<Reply>& reply) {
  if (draining_) throw ApiError(503, "the server is shutting down", "", "shutting_down");
  if (!generator_.failure().empty()) throw ApiError(503, "the engine has stopped");
  reply->send(json_response({{"status", "ready"}}));
}

void Service::version(HttpRequest&, std::shared_ptr<Reply>& reply) {
  reply->send(json_response({{"version", options_.version}}));
}

void Service::metrics(HttpRequest&, std::shared_ptr<Reply>& reply) {
  reply->send({.content_type = "text/plain; version=0.0.4; charset=utf-8",
               .body = metrics_.text(generator_.statistics(), connections_(), draining_)});
}

}  // namespace ostro::server
