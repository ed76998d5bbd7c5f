// What is behind an Executor: one thread that steps an engine, and the queues around it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "api/convert.h"
#include "engine/engine.h"
#include "guide/compiler.h"
#include "ostro/executor.h"

namespace ostro {
namespace api {

// What an Executor that loads its own engine owns beside it.
struct Resources {
  virtual ~Resources() = default;
};

}  // namespace api

// Requests and cancels wait in an inbox that the step thread empties between steps; responses wait
// in a ticket of their request until they are fetched. One mutex guards both; it is never held
// during a step.
class Executor::Core {
 public:
  // `resources` are destroyed after the step thread has ended.
  Core(engine::Rank&, const model::EngineConfig&, const ExecutorConfig&,
       std::unique_ptr<api::Resources> resources);
  ~Core();

  Submission submit(Request);
  Preparation prepare(const Guide&);
  std::shared_ptr<const CompiledGuide> find_prepared(const Guide&);
  std::vector<Response> await_responses(std::chrono::milliseconds timeout);
  std::vector<Response> await_responses(RequestId, std::chrono::milliseconds timeout);
  static constexpr std::int32_t kAllSequences = -1;
  bool cancel(RequestId, std::int32_t sequence);
  void shutdown(Drain);

  std::string failure() const;
  void rethrow_failure() const;
  ExecutorStatistics statistics() const;
  std::vector<IterationStatistics> take_iteration_statistics();
  const ModelInfo& model() const { return model_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Arrival {
    RequestId id = 0;
    engine::Request request;
    Clock::time_point submitted;
    Clock::time_point deadline;
    bool streaming = true;
  };
  // A request as the step thread sees it.
  struct Open {
    RequestId id = 0;
    Clock::time_point submitted;
    Clock::time_point deadline;
    api::Wanted wanted;
    std::vector<Response> pending;  // of each sequence: what has not been delivered
    std::vector<bool> ended;        // of each sequence
    RequestStatistics statistics;
  };
  // A request as its client sees it.
  struct Ticket {
    std::vector<Response> ready;
    bool finished = false;  // its last response is, or was, in `ready`
  };
  struct Inbox {
    std::vector<Arrival> arrivals;
    std::vector<std::pair<RequestId, std::int32_t>> cancels;  // and the sequence
    bool cancel_all = false;
    bool stop = false;
  };

  void run();
  void loop();
  Inbox wait_for_work();
  void admit(Arrival);
  void abandon(RequestId, FinishReason);
  void abandon_sequence(RequestId, std::int32_t sequence);
  void expire();
  void step();
  void take(engine::Event&&, std::vector<Response>&);
  void record(Clock::time_point begin, std::int64_t started_prompt_tokens);
  void count_blocks();
  void end_all(Open&, FinishReason, const std::string& error, std::vector<Response>&);
  void forget(engine::RequestId);
  void deliver(std::vector<Response>);
  void fail(std::exception_ptr);
  double since(Clock::time_point) const;
  guide::Compiler& guides();
  std::shared_ptr<const guide::Grammar> grammar_of(const Request&);
  std::vector<Response> hand_out(std::map<RequestId, Ticket>::iterator);

  std::unique_ptr<api::Resources> resources_;
  const ExecutorConfig config_;
  const ModelInfo model_;
  const Clock::time_point made_ = Clock::now();
  std::once_flag guides_made_;
  std::unique_ptr<guide::Compiler> guides_;  // made with the first guide
  std::atomic<bool> has_guides_ = false;     // guides_ is there

  // Of the step thread, but for engine_.check(), which any thread may call.
  engine::Engine engine_;
  std::map<engine::RequestId, Open> open_;
  std::map<RequestId, engine::RequestId> engine_id_;
  std::set<std::pair<Clock::time_point, RequestId>> deadlines_;

  mutable std::mutex mutex_;
  std::condition_variable work_;   // the inbox has something, or shutdown() was called
  std::condition_variable ready_;  // a ticket has something, or the step thread has ended
  Inbox inbox_;
  std::map<RequestId, Ticket> tickets_;
  std::set<RequestId> with_responses_;
  RequestId next_id_ = 1;
  bool shut_down_ = false;  // no request is taken any more
  bool ended_ = false;      // the step thread delivers no more
  std::exception_ptr failure_;
  std::string failure_text_;
  ExecutorStatistics statistics_;
  std::deque<IterationStatistics> iterations_;

  std::mutex join_;  // of shutdown()
  std::thread thread_;
};

}  // namespace ostro
