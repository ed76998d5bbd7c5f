// The side of Executor::Core that steps the engine.
#include <algorithm>

#include "api/convert.h"
#include "api/core.h"

namespace ostro {
namespace {

std::string describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an unknown error";
  }
}

}  // namespace

void Executor::Core::run() {
  try {
    loop();
  } catch (...) {
    fail_all();
  }
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  ready_.notify_all();
}

void Executor::Core::loop() {
  for (;;) {
    Inbox inbox = wait_for_work();
    for (Arrival& arrival : inbox.arrivals) admit(std::move(arrival));
    for (RequestId id : inbox.cancels) abandon(id, FinishReason::cancelled);
    while (inbox.cancel_all && !engine_id_.empty())
      abandon(engine_id_.begin()->first, FinishReason::cancelled);
    expire();
    if (!engine_.idle())
      step();
    else if (inbox.stop)
      return;
  }
}

// What has arrived; at once while the engine has work.
Executor::Core::Inbox Executor::Core::wait_for_work() {
  std::unique_lock lock(mutex_);
  if (engine_.idle())
    work_.wait(lock, [&] {
      return !inbox_.arrivals.empty() || !inbox_.cancels.empty() || inbox_.stop;
    });
  Inbox inbox = std::move(inbox_);
  inbox_ = {};
  inbox_.stop = inbox.stop;
  return inbox;
}

void Executor::Core::admit(Arrival arrival) {
  const engine::RequestId engine_id = engine_.submit(arrival.request);
  arrival.request.prompt.clear();
  const RequestId id = arrival.id;
  engine_id_.emplace(id, engine_id);
  if (arrival.deadline != Clock::time_point::max()) deadlines_.emplace(arrival.deadline, id);
  const auto sequences = std::size_t(arrival.request.sequences);
  Open open{.id = id,
            .arrival = std::move(arrival),
            .pending = std::vector<Response>(sequences),
            .ended = std::vector<bool>(sequences, false),
            .statistics = {}};
  for (std::size_t i = 0; i < sequences; ++i) {
    open.pending[i].id = id;
    open.pending[i].sequence = std::int32_t(i);
  }
  open.statistics.prompt_tokens = engine_.usage(engine_id).prompt_tokens;
  open_.emplace(engine_id, std::move(open));
}

void Executor::Core::expire() {
  while (!deadlines_.empty() && deadlines_.begin()->first <= Clock::now())
    abandon(deadlines_.begin()->second, FinishReason::timed_out);
}

void Executor::Core::step() {
  const Clock::time_point begin = Clock::now();
  std::vector<engine::Event> events = engine_.step();
  const engine::StepReport& report = engine_.report();
  OSTRO_CHECK(report.sequences > 0, engine_.running(), " sequences run and ", engine_.waiting(),
              " wait, and none has a share of the step");
  for (engine::RequestId id : report.started) {
    Open& open = open_.at(id);
    open.statistics.started_s = since(open.arrival.submitted);
  }
  std::int64_t prompts = 0, reused = 0;
  for (engine::RequestId id : report.started) {
    const engine::Usage usage = engine_.usage(id);
    prompts += open_.at(id).statistics.prompt_tokens;
    reused += usage.reused_tokens;
  }
  std::int64_t pauses = 0;
  std::vector<Response> responses;
  for (engine::Event& event : events) {
    if (event.last) pauses += event.usage.pauses;
    take(std::move(event), responses);
  }
  const kv::BlockPool& pool = engine_.pool();
  {
    const std::lock_guard lock(mutex_);
    ExecutorStatistics& s = statistics_;
    ++s.iterations;
    s.queued -= std::int64_t(report.started.size());
    s.prompt_tokens += prompts;
    s.reused_tokens += reused;
    s.output_tokens += report.output_tokens;
    s.pauses += pauses;
    s.kv_blocks_used = pool.total() - pool.available();
    s.kv_blocks_cached = pool.cached();
    s.busy_s += since(begin);
    if (config_.iteration_statistics == 0) return deliver(std::move(responses));
    if (iterations_.size() == config_.iteration_statistics) iterations_.pop_front();
    iterations_.push_back({.iteration = s.iterations,
                           .end_s = since(made_),
                           .step_s = since(begin),
                           .running = report.sequences,
                           .waiting = std::int64_t(engine_.waiting()),
                           .prompt_tokens = report.prompt_tokens,
                           .output_tokens = report.output_tokens,
                           .kv_blocks_used = s.kv_blocks_used,
                           .kv_blocks_cached = s.kv_blocks_cached});
  }
  deliver(std::move(responses));
}

}  // namespace ostro
