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
    fail(std::current_exception());
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
    for (const auto& [id, sequence] : inbox.cancels)
      sequence == kAllSequences ? abandon(id, FinishReason::cancelled)
                                : abandon_sequence(id, sequence);
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
    work_.wait(lock,
               [&] { return !inbox_.arrivals.empty() || !inbox_.cancels.empty() || inbox_.stop; });
  Inbox inbox = std::move(inbox_);
  inbox_ = {};
  inbox_.stop = inbox.stop;
  return inbox;
}

void Executor::Core::admit(Arrival arrival) {
  const engine::Request& request = arrival.request;
  const auto sequences = std::size_t(request.sequences);
  Open open{.id = arrival.id,
            .submitted = arrival.submitted,
            .deadline = arrival.deadline,
            .wanted = {.log_probs = request.log_probs,
                       .alternatives = request.alternatives > 0,
                       .streaming = arrival.streaming && !request.searches(),
                       .beams = request.searches()},
            .pending = std::vector<Response>(sequences),
            .ended = std::vector<bool>(sequences, false),
            .statistics = {}};
  for (std::size_t i = 0; i < sequences; ++i) {
    open.pending[i].id = arrival.id;
    open.pending[i].sequence = std::int32_t(i);
  }
  open.statistics.prompt_tokens = std::int64_t(request.prompt.size());
  const engine::RequestId engine_id = engine_.submit(std::move(arrival.request));
  engine_id_.emplace(arrival.id, engine_id);
  if (arrival.deadline != Clock::time_point::max())
    deadlines_.emplace(arrival.deadline, arrival.id);
  open_.emplace(engine_id, std::move(open));
}

// Ends a request from outside; nothing if it has ended meanwhile.
void Executor::Core::abandon(RequestId id, FinishReason reason) {
  const auto it = engine_id_.find(id);
  if (it == engine_id_.end()) return;
  const engine::RequestId engine_id = it->second;
  Open& open = open_.at(engine_id);
  const engine::Usage usage = engine_.usage(engine_id);
  open.statistics.reused_tokens = usage.reused_tokens;
  open.statistics.output_tokens = usage.output_tokens;
  open.statistics.pauses = usage.pauses;
  engine_.cancel(engine_id);
  std::vector<Response> responses;
  end_all(open, reason, "", responses);
  forget(engine_id);
  deliver(std::move(responses));
}

void Executor::Core::abandon_sequence(RequestId id, std::int32_t sequence) {
  const auto it = engine_id_.find(id);
  if (it == engine_id_.end()) return;
  Open& open = open_.at(it->second);
  if (open.wanted.beams) return;
  const auto i = std::size_t(sequence);
  if (i >= open.ended.size() || open.ended[i]) return;
  if (std::ranges::count(open.ended, false) == 1) return abandon(id, FinishReason::cancelled);
  engine_.cancel(it->second, sequence);
  open.ended[i] = true;
  Response& r = open.pending[i];
  r.is_final = true;
  r.finish = FinishReason::cancelled;
  r.statistics = open.statistics;
  std::vector<Response> responses;
  responses.push_back(std::move(r));
  deliver(std::move(responses));
}

void Executor::Core::forget(engine::RequestId engine_id) {
  const auto it = open_.find(engine_id);
  deadlines_.erase({it->second.deadline, it->second.id});
  engine_id_.erase(it->second.id);
  open_.erase(it);
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
  std::int64_t prompt_tokens = 0;
  for (engine::RequestId id : report.started) {
    Open& open = open_.at(id);
    open.statistics.started_s = since(open.submitted);
    prompt_tokens += open.statistics.prompt_tokens * std::int64_t(open.pending.size());
  }
  std::vector<Response> responses;
  for (engine::Event& event : events) take(std::move(event), responses);
  record(begin, prompt_tokens);
  deliver(std::move(responses));
}

// Under the mutex.
void Executor::Core::count_blocks() {
  const kv::BlockPool& pool = engine_.pool();
  statistics_.kv_blocks_used = pool.total() - pool.available();
  statistics_.kv_blocks_cached = pool.cached();
}

void Executor::Core::record(Clock::time_point begin, std::int64_t started_prompt_tokens) {
  const engine::StepReport& report = engine_.report();
  const std::lock_guard lock(mutex_);
  count_blocks();
  ExecutorStatistics& s = statistics_;
  ++s.iterations;
  s.queued -= std::int64_t(report.started.size());
  s.prompt_tokens += started_prompt_tokens;
  s.reused_tokens = report.reused_tokens_total;
  s.pauses = report.pauses_total;
  s.output_tokens += report.output_tokens;
  s.busy_s += since(begin);
  const std::span<const std::int64_t> chosen = engine_.expert_tokens();
  for (std::size_t layer = 0, at = 0; layer < s.expert_tokens.size(); ++layer)
    for (std::int64_t& tokens : s.expert_tokens[layer]) tokens = chosen[at++];
  if (config_.iteration_statistics == 0) return;
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

void Executor::Core::take(engine::Event&& event, std::vector<Response>& out) {
  const engine::RequestId engine_id = event.id;
  Open& open = open_.at(engine_id);
  RequestStatistics& statistics = open.statistics;
  if (event.has_token && statistics.first_token_s < 0)
    statistics.first_token_s = since(open.submitted);
  statistics.reused_tokens = event.usage.reused_tokens;
  statistics.output_tokens = event.usage.output_tokens;
  statistics.pauses = event.usage.pauses;

  const auto i = std::size_t(event.sequence);
  const bool last = event.last;
  Response& r = open.pending[i];
  r.finish = api::to_public(event.finish);
  r.is_final = r.finish != FinishReason::none;
  r.is_last = last;
  r.stop_index = event.stop_index;
  api::add(std::move(event), open.wanted, r);
  if (r.is_final) open.ended[i] = true;
  if (r.is_last) statistics.finished_s = since(open.submitted);
  if (open.wanted.streaming || r.is_final) {
    const Response rest{.id = r.id, .sequence = r.sequence, .score = r.score};
    r.statistics = statistics;
    out.push_back(std::exchange(r, rest));
  }
  if (last) forget(engine_id);
}

// The last responses of a request that ends before its sequences do.
void Executor::Core::end_all(Open& open, FinishReason reason, const std::string& error,
                             std::vector<Response>& out) {
  open.statistics.finished_s = since(open.submitted);
  for (std::size_t i = 0; i < open.pending.size(); ++i) {
    if (open.ended[i]) continue;
    Response& r = open.pending[i];
    r.is_final = true;
    r.finish = reason;
    r.error = error;
    r.statistics = open.statistics;
    out.push_back(std::move(r));
  }
  out.back().is_last = true;
}

void Executor::Core::deliver(std::vector<Response> responses) {
  if (responses.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    count_blocks();
    for (Response& r : responses) {
      Ticket& ticket = tickets_.at(r.id);
      with_responses_.insert(r.id);
      if (r.is_last) {
        ticket.finished = true;
        --statistics_.open;
        if (r.statistics.started_s < 0) --statistics_.queued;
        ++(r.finish == FinishReason::cancelled   ? statistics_.cancelled
           : r.finish == FinishReason::timed_out ? statistics_.timed_out
           : r.finish == FinishReason::error     ? statistics_.failed
                                                 : statistics_.finished);
      }
      ticket.ready.push_back(std::move(r));
    }
  }
  ready_.notify_all();
}

// Every request that is open ends with the error, those that the engine has not seen included.
void Executor::Core::fail(std::exception_ptr failure) {
  std::vector<Response> responses;
  {
    const std::lock_guard lock(mutex_);
    failure_ = failure;
    failure_text_ = describe(failure);
    for (const auto& [id, ticket] : tickets_) {
      if (ticket.finished) continue;
      if (const auto it = engine_id_.find(id); it != engine_id_.end())
        end_all(open_.at(it->second), FinishReason::error, failure_text_, responses);
      else
        responses.push_back({.id = id,
                             .is_final = true,
                             .is_last = true,
                             .finish = FinishReason::error,
                             .error = failure_text_});
    }
  }
  deliver(std::move(responses));
}

}  // namespace ostro
