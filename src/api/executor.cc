#include "ostro/executor.h"

#include "api/core.h"
#include "api/make_executor.h"
#include "api/one_rank.h"

namespace ostro {

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::end_id:
      return "end_id";
    case FinishReason::length:
      return "length";
    case FinishReason::stop:
      return "stop";
    case FinishReason::guide:
      return "guide";
    case FinishReason::dead_end:
      return "dead_end";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::timed_out:
      return "timed_out";
    case FinishReason::error:
      return "error";
  }
  return "unknown";
}

Executor::Executor(const ExecutorConfig& config) : core_(api::load_one_rank(config)) {}
Executor::Executor(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Executor::~Executor() = default;
Executor::Executor(Executor&&) noexcept = default;
Executor& Executor::operator=(Executor&&) noexcept = default;

Submission Executor::submit(Request request) { return core_->submit(std::move(request)); }
Preparation Executor::prepare(const Guide& guide) { return core_->prepare(guide); }
std::shared_ptr<const CompiledGuide> Executor::find_prepared(const Guide& guide) {
  return core_->find_prepared(guide);
}
int Executor::guides_at_work() { return guide::threads_at_work(); }
std::vector<Response> Executor::await_responses(std::chrono::milliseconds timeout) {
  return core_->await_responses(timeout);
}
std::vector<Response> Executor::await_responses(RequestId id, std::chrono::milliseconds timeout) {
  return core_->await_responses(id, timeout);
}
bool Executor::cancel(RequestId id) { return core_->cancel(id, Core::kAllSequences); }
bool Executor::cancel(RequestId id, std::int32_t sequence) {
  return sequence >= 0 && core_->cancel(id, sequence);
}
void Executor::shutdown(Drain drain) { core_->shutdown(drain); }
std::string Executor::failure() const { return core_->failure(); }
ExecutorStatistics Executor::statistics() const { return core_->statistics(); }
std::vector<IterationStatistics> Executor::take_iteration_statistics() {
  return core_->take_iteration_statistics();
}
const ModelInfo& Executor::model() const { return core_->model(); }

namespace api {

Executor make_executor(engine::Rank& rank, const model::EngineConfig& engine,
                       const ExecutorConfig& config) {
  return Executor(std::make_unique<Executor::Core>(rank, engine, config, nullptr));
}

void rethrow_failure(const Executor& executor) { executor.core().rethrow_failure(); }

}  // namespace api
}  // namespace ostro
