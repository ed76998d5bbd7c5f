#include "builder/tune.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "base/clock.h"
#include "builder/tuned_ops.h"
#include "model/step_arrays.h"

namespace ostro::builder {
namespace {

// A measurement takes about so long, so that the host's part of it does not count.
constexpr double kMeasureSeconds = 2e-3;
constexpr std::size_t kMostRuns = kMostCopies;

// Compares and times the tactics of one product of an operation.
class Trial {
 public:
  Trial(ops::Backend& backend, const TunedOp& op, const ops::Product& product, ops::Tactic planned)
      : backend_(backend), op_(op), product_(product), y_(backend.allocate(op.bytes())) {
    use(planned);
    // With many tokens every routing has all experts; the results are large.
    const std::size_t compared = op.tokens < 1024 ? kRoutings : 1;
    for (std::size_t i = 0; i < compared; ++i) want_.push_back(result(i));
    const Stopwatch watch;
    run(kRoutings);
    backend_.wait();
    const auto rounds = std::size_t(kMeasureSeconds / std::max(watch.seconds(), 1e-6));
    runs_ = kRoutings * std::clamp<std::size_t>(rounds, 1, kMostRuns / kRoutings);
  }
  ~Trial() { backend_.use({}); }
  Trial(const Trial&) = delete;

  bool same(ops::Tactic tactic) {
    use(tactic);
    for (std::size_t i = 0; i < want_.size(); ++i)
      if (result(i) != want_[i]) return false;
    return true;
  }

  double seconds(ops::Tactic tactic) {
    const auto [it, first] = recordings_.try_emplace(tactic);
    if (first) {
      use(tactic);
      it->second = backend_.record([&] { run(runs_); });
      measured_seconds(tactic, it->second.get());  // the first replay is slower
    }
    return measured_seconds(tactic, it->second.get());
  }

 private:
  void use(ops::Tactic tactic) {
    ops::Tactics table;
    table.set(product_, op_.tokens, tactic);
    backend_.use(table);
  }

  void run(std::size_t runs) {
    for (std::size_t i = 0; i < runs; ++i) op_.run(i, op_.output(y_));
  }

  // Of one run, into memory that nothing has been written to.
  std::vector<std::byte> result(std::size_t i) {
    const Buffer memory = backend_.allocate(op_.bytes());
    const View y = op_.output(memory);
    op_.run(i, y);
    std::vector<std::byte> bytes(op_.bytes());
    backend_.copy(y, matrix(bytes.data(), y.dtype, y.rows, y.cols));
    backend_.wait();
    return bytes;
  }

  double measured_seconds(ops::Tactic tactic, const ops::Recording* recording) {
    if (!recording) use(tactic);
    backend_.wait();
    const Stopwatch watch;
    if (!recording)
      run(runs_);
    else
      OSTRO_CHECK(backend_.replay(*recording), "scratch memory has moved with no larger step");
    backend_.wait();
    return watch.seconds() / double(runs_);
  }

  ops::Backend& backend_;
  const TunedOp& op_;
  ops::Product product_;
  Buffer y_;
  std::vector<std::vector<std::byte>> want_;
  std::size_t runs_ = kRoutings;
  std::map<ops::Tactic, std::unique_ptr<ops::Recording>> recordings_;
};

std::vector<std::int64_t> token_counts(std::int64_t most) {
  std::vector<std::int64_t> counts = model::padded_decode_tokens(most);
  for (std::int64_t n = 2 * counts.back(); n < most; n *= 2) counts.push_back(n);
  if (counts.back() != most) counts.push_back(most);
  return counts;
}

struct Task {
  TunedOps* ops;
  TunedOps::Part part;
  std::int64_t tokens;
  std::vector<ops::Tactic> tactics;
};

TunedProduct measure(const Task& task, ops::Backend& backend) {
  const TunedOp op = (task.ops->*task.part.make)(task.tokens);
  Trial trial(backend, op, task.part.product, task.tactics.front());
  return {
      .name = task.part.name,
      .product = task.part.product,
      .tokens = task.tokens,
      .planned = task.tactics.front(),
      .choice = choose(task.tactics, {.same = [&](ops::Tactic t) { return trial.same(t); },
                                      .seconds = [&](ops::Tactic t) { return trial.seconds(t); }})};
}

}  // namespace

std::vector<TunedProduct> tune(const model::EngineConfig& config, ops::Backend& backend,
                               const TuneProgress& progress) {
  backend.use({});
  std::vector<std::unique_ptr<TunedOps>> ranks;
  std::vector<Task> tasks;
  std::set<ops::Product> seen;
  for (std::int64_t r = 0; r < config.mapping.ranks(); ++r) {
    ranks.push_back(std::make_unique<TunedOps>(config, r, backend));
    for (const TunedOps::Part& part : ranks.back()->parts()) {
      if (!seen.insert(part.product).second) continue;
      for (const std::int64_t tokens : token_counts(config.limits.max_num_tokens)) {
        std::vector<ops::Tactic> tactics = backend.tactics(part.product, tokens);
        if (tokens <= part.most_tokens && tactics.size() > 1)
          tasks.push_back({ranks.back().get(), part, tokens, std::move(tactics)});
      }
    }
  }
  std::vector<TunedProduct> tuned;
  for (const Task& task : tasks) {
    tuned.push_back(measure(task, backend));
    if (progress) progress(double(tuned.size()) / double(tasks.size()), tuned.back());
  }
  return tuned;
}

ops::Tactics tactics_of(std::span<const TunedProduct> tuned) {
  ops::Tactics table;
  for (const TunedProduct& t : tuned) table.set(t.product, t.tokens, t.choice.tactic);
  return table;
}

}  // namespace ostro::builder
