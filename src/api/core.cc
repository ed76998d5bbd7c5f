#include "api/core.h"

#include <algorithm>

#include "api/convert.h"

namespace ostro {
namespace {

// Longer than any process lives; the clock can still count it.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365 * 10);

constexpr const char* kTooManyGuides = "too many other guides are being compiled";

struct CompiledGrammar final : CompiledGuide {
  explicit CompiledGrammar(std::shared_ptr<const guide::Grammar> of) : grammar(std::move(of)) {}
  const std::shared_ptr<const guide::Grammar> grammar;
};

}  // namespace

Executor::Core::Core(engine::Rank& rank, const model::EngineConfig& engine,
                     const ExecutorConfig& config, std::unique_ptr<api::Resources> resources)
    : resources_(std::move(resources)),
      config_(config),
      model_(api::model_info(engine.model, engine.dummy)),
      engine_(rank, engine.model, api::to_engine(config)) {
  OSTRO_REQUIRE(config.max_queue_size >= 0, "max_queue_size is ", config.max_queue_size,
                "; it must be 0 (no limit) or more");
  statistics_.kv_blocks_total = rank.limits().kv_blocks;
  statistics_.kv_block_tokens = rank.limits().block_tokens;
  if (engine.model.experts > 0)
    statistics_.expert_tokens.assign(std::size_t(engine.model.layers),
                                     std::vector<std::int64_t>(std::size_t(engine.model.experts)));
  thread_ = std::thread([this] { run(); });
}

Executor::Core::~Core() { shutdown(Drain::no); }

double Executor::Core::since(Clock::time_point begin) const {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Clients.

Submission Executor::Core::submit(Request request) {
  Arrival arrival;
  arrival.submitted = Clock::now();
  arrival.streaming = request.streaming;
  const bool limited = request.time_limit.count() > 0 && request.time_limit < kForever;
  arrival.deadline = limited ? arrival.submitted + request.time_limit : Clock::time_point::max();
  Submission result;
  try {
    OSTRO_REQUIRE(request.time_limit.count() >= 0, "time_limit is ", request.time_limit.count(),
                  " ms; it must be 0 (none) or more");
    const bool guided = request.guide || request.compiled_guide;
    auto grammar = grammar_of(request);
    if (guided && !grammar) result = {SubmitStatus::queue_full, 0, kTooManyGuides};
    arrival.request = api::to_engine(std::move(request));
    arrival.request.guide = std::move(grammar);
    engine_.check(arrival.request);
  } catch (const InvalidArgument& e) {
    result = {SubmitStatus::invalid, 0, e.what()};
  } catch (const Unsupported& e) {
    result = {SubmitStatus::unsupported, 0, e.what()};
  }
  {
    const std::lock_guard lock(mutex_);
    if (result) {
      if (failure_)
        result = {SubmitStatus::failed, 0, failure_text_};
      else if (shut_down_)
        result = {SubmitStatus::shut_down, 0, "the executor is shutting down"};
      else if (config_.max_queue_size > 0 && statistics_.queued >= config_.max_queue_size)
        result = {
            SubmitStatus::queue_full, 0,
            text(statistics_.queued, " requests wait; there is room for ", config_.max_queue_size)};
    }
    if (!result) {
      ++statistics_.rejected;
      return result;
    }
    result.id = arrival.id = next_id_++;
    tickets_.emplace(result.id, Ticket{});
    inbox_.arrivals.push_back(std::move(arrival));
    ++statistics_.accepted;
    ++statistics_.queued;
    ++statistics_.open;
  }
  work_.notify_one();
  return result;
}

guide::Compiler& Executor::Core::guides() {
  OSTRO_REQUIRE(!config_.vocabulary.bytes.empty(),
                "a guide needs the vocabulary of a tokenizer; this executor was given none");
  std::call_once(guides_made_, [&] {
    guides_ = std::make_unique<guide::Compiler>(api::to_engine(config_.vocabulary), model_.vocab);
    has_guides_ = true;
  });
  return *guides_;
}

// Null if the request is not guided, or if it is and too many other guides are at work.
std::shared_ptr<const guide::Grammar> Executor::Core::grammar_of(const Request& request) {
  if (request.compiled_guide) {
    const auto* compiled = dynamic_cast<const CompiledGrammar*>(request.compiled_guide.get());
    OSTRO_REQUIRE(compiled && has_guides_ && guides_->made(*compiled->grammar),
                  "the compiled guide is of another executor");
    return compiled->grammar;
  }
  return request.guide ? guides().compile(api::to_engine(*request.guide)) : nullptr;
}

Preparation Executor::Core::prepare(const Guide& guide) {
  try {
    auto grammar = guides().compile(api::to_engine(guide));
    if (!grammar) return {.status = SubmitStatus::queue_full, .message = kTooManyGuides};
    return {.guide = std::make_shared<CompiledGrammar>(std::move(grammar))};
  } catch (const InvalidArgument& e) {
    return {.status = SubmitStatus::invalid, .message = e.what()};
  } catch (const Unsupported& e) {
    return {.status = SubmitStatus::unsupported, .message = e.what()};
  }
}

std::shared_ptr<const CompiledGuide> Executor::Core::find_prepared(const Guide& guide) {
  if (!has_guides_) return nullptr;
  auto grammar = guides_->find(api::to_engine(guide));
  return grammar ? std::make_shared<CompiledGrammar>(std::move(grammar)) : nullptr;
}

std::vector<Response> Executor::Core::hand_out(std::map<RequestId, Ticket>::iterator ticket) {
  std::vector<Response> all = std::exchange(ticket->second.ready, {});
  with_responses_.erase(ticket->first);
  if (ticket->second.finished) tickets_.erase(ticket);
  return all;
}

std::vector<Response> Executor::Core::await_responses(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  ready_.wait_for(lock, std::min(timeout, kForever),
                  [&] { return !with_responses_.empty() || ended_; });
  std::vector<Response> all;
  while (!with_responses_.empty())
    for (Response& r : hand_out(tickets_.find(*with_responses_.begin())))
      all.push_back(std::move(r));
  return all;
}

std::vector<Response> Executor::Core::await_responses(RequestId id,
                                                      std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  // Another thread may fetch the last response while this one waits.
  ready_.wait_for(lock, std::min(timeout, kForever), [&] {
    const auto it = tickets_.find(id);
    return it == tickets_.end() || !it->second.ready.empty() || ended_;
  });
  const auto it = tickets_.find(id);
  return it == tickets_.end() ? std::vector<Response>{} : hand_out(it);
}

bool Executor::Core::cancel(RequestId id, std::int32_t sequence) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(id);
    if (it == tickets_.end() || it->second.finished) return false;
    inbox_.cancels.emplace_back(id, sequence);
  }
  work_.notify_one();
  return true;
}

void Executor::Core::shutdown(Drain drain) {
  {
    const std::lock_guard lock(mutex_);
    shut_down_ = true;
    inbox_.stop = true;
    if (drain == Drain::no) inbox_.cancel_all = true;
  }
  work_.notify_one();
  const std::lock_guard lock(join_);
  if (thread_.joinable()) thread_.join();
}

std::string Executor::Core::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_text_;
}

void Executor::Core::rethrow_failure() const {
  std::exception_ptr failure;
  {
    const std::lock_guard lock(mutex_);
    failure = failure_;
  }
  if (failure) std::rethrow_exception(failure);
}

ExecutorStatistics Executor::Core::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

std::vector<IterationStatistics> Executor::Core::take_iteration_statistics() {
  const std::lock_guard lock(mutex_);
  std::vector<IterationStatistics> all(iterations_.begin(), iterations_.end());
  iterations_.clear();
  return all;
}

}  // namespace ostro
