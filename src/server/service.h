// The routes of an OpenAI-compatible server. docs/serving.md is its reference for users.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "server/api_keys.h"
#include "server/api_request.h"
#include "server/generation.h"
#include "server/generator.h"
#include "server/http.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace ostro::server {

struct ServiceOptions {
  std::string version;                      // of the program
  std::vector<std::string> api_keys = {};   // none: everybody may
  std::chrono::milliseconds time_limit{0};  // of a request; 0: none
};

// Of the server's thread.
class Service {
 public:
  Service(const ServiceOptions&, const ServedModel&, Generator&, const Log&);

  // Answers, now or by and by. Never throws: a bug becomes a 500 that says nothing of its inside.
  void handle(HttpRequest, std::shared_ptr<Reply>);

  // What came from the executor.
  void deliver(const std::vector<Response>&, const std::vector<IterationStatistics>&);

  // For the access log and the metrics.
  void record(const ExchangeRecord&);
  void set_connections(std::function<std::size_t()> count) { connections_ = std::move(count); }

  // How `work` is done on another thread, and then `then` on the server's; without it both at once.
  // False if too much waits there already: neither is done.
  using Elsewhere = std::function<bool(std::function<void()> work, std::function<void()> then)>;
  void set_elsewhere(Elsewhere elsewhere) { elsewhere_ = std::move(elsewhere); }

  // New requests are refused with 503 from now on.
  void drain() { draining_ = true; }
  // Ends every open request with an error: the engine has failed, or the server must go now.
  void end_all(const ApiError&);

 private:
  struct Open {
    std::shared_ptr<Generation> generation;
    std::int64_t sequences = 1;
    std::vector<std::chrono::steady_clock::time_point> last_response;  // of each sequence
  };
  using Route = void (Service::*)(HttpRequest&, std::shared_ptr<Reply>&);
  struct Entry {
    const char* method;
    const char* path;
    Route route;
    bool open_to_all;
  };
  static const std::vector<Entry>& routes();

  void dispatch(HttpRequest&, std::shared_ptr<Reply>&);
  void check_key(HttpRequest&) const;

  void completions(HttpRequest&, std::shared_ptr<Reply>&);
  void chat(HttpRequest&, std::shared_ptr<Reply>&);
  void generate(ApiRequest, HttpRequest&, std::shared_ptr<Reply>&);
  void compile(ApiRequest, HttpRequest&, std::shared_ptr<Reply>&);
  void start(ApiRequest, const std::string& request_id, const std::shared_ptr<Reply>&);
  void answer(const std::string& what, Reply&, const std::function<void()>& handler);
  void models(HttpRequest&, std::shared_ptr<Reply>&);
  void model(HttpRequest&, std::shared_ptr<Reply>&);
  void tokenize(HttpRequest&, std::shared_ptr<Reply>&);
  void detokenize(HttpRequest&, std::shared_ptr<Reply>&);
  void health(HttpRequest&, std::shared_ptr<Reply>&);
  void ready(HttpRequest&, std::shared_ptr<Reply>&);
  void version(HttpRequest&, std::shared_ptr<Reply>&);
  void metrics(HttpRequest&, std::shared_ptr<Reply>&);

  const ServiceOptions options_;
  const ApiKeys keys_;
  const ServedModel& model_;
  Generator& generator_;
  const Log& log_;
  const std::int64_t started_;  // seconds since 1970
  Metrics metrics_;
  std::function<std::size_t()> connections_ = [] { return std::size_t{0}; };
  Elsewhere elsewhere_ = [](const std::function<void()>& work, const std::function<void()>& then) {
    work();
    then();
    return true;
  };
  std::unordered_map<RequestId, Open> open_;
  bool draining_ = false;
  std::optional<ApiError> over_;  // what end_all() was told
};

}  // namespace ostro::server
