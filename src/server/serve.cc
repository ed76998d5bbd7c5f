#include "server/serve.h"

#include <atomic>
#include <thread>

#include "server/api_error.h"
#include "server/background.h"

namespace ostro::server {
namespace {

// As many as an executor compiles at once.
constexpr std::size_t kGuideThreads = 4;
constexpr std::size_t kGuidesWaiting = 64;
// Most guides take milliseconds.
constexpr std::chrono::seconds kGuidePatience(1);

// Carries what the executor's thread brings to the server's thread.
class Carrier {
 public:
  Carrier(Generator& generator, Service& service, HttpServer& server)
      : generator_(generator), service_(service), server_(server), thread_([this] { run(); }) {}
  ~Carrier() {
    ended_ = true;
    thread_.join();
  }

 private:
  void run() {
    while (!ended_) {
      // The time-out bounds how long the destructor waits, no answer waits for it.
      auto responses = generator_.await_responses(std::chrono::milliseconds(100));
      auto steps = generator_.take_iteration_statistics();
      if (!responses.empty() || !steps.empty())
        server_.post([this, responses = std::move(responses), steps = std::move(steps)] {
          service_.deliver(responses, steps);
        });
      if (generator_.failure().empty()) continue;
      server_.post([this] {
        service_.drain();
        service_.end_all({500, "the engine has stopped"});
        server_.stop();
      });
      return;
    }
  }

  Generator& generator_;
  Service& service_;
  HttpServer& server_;
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace

void serve(const HttpOptions& http, const ServiceOptions& options, const ServedModel& model,
           Generator& generator, const Log& log,
           const std::function<void(std::uint16_t port)>& listening) {
  Service service(options, model, generator, log);
  HttpServer server(
      http,
      [&](HttpRequest request, std::shared_ptr<Reply> reply) {
        service.handle(std::move(request), std::move(reply));
      },
      [&](const ExchangeRecord& record) { service.record(record); });
  service.set_connections([&] { return server.connections(); });
  server.stop_on_signals([&](int nth) {
    const ApiError going{503, "the server is shutting down", "", "shutting_down"};
    if (nth == 1) {
      log.info("stopping: what runs is finished, nothing new is taken");
      service.drain();
      server.stop();
    } else if (nth == 2) {
      log.info("stopping now: open requests end with an error");
      service.end_all(going);
    } else {
      server.close_all();
    }
  });
  listening(server.port());
  Background background(kGuideThreads, kGuidesWaiting, kGuidePatience);
  service.set_elsewhere([&](std::function<void()> work, std::function<void()> then) {
    return background.run([&server, work = std::move(work), then = std::move(then)] {
      work();
      server.post(then);
    });
  });
  const Carrier carrier(generator, service, server);
  server.run();
}

}  // namespace ostro::server
