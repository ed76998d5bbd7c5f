// An Executor over two and over four pipeline stages, each a process of its own, with a step in
// flight on each: what it generates is what one rank does, bit for bit, under pauses and cancels
// (rank.same_plan), the tokens of each expert of all stages are counted, and all processes end.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>

#include "api/make_executor.h"
#include "comm/local/launch.h"
#include "engine/small_engine.h"

namespace ostro {
namespace {

using namespace std::chrono_literals;
using testing_engine::SmallEngine;

using ExpertTokens = std::vector<std::vector<std::int64_t>>;

struct Output {
  std::vector<TokenId> tokens;
  std::vector<float> log_probs;
  bool operator==(const Output&) const = default;
};

std::vector<Request> requests() {
  std::mt19937 rng(7);
  std::vector<Request> all(60);
  for (std::size_t i = 0; i < all.size(); ++i) {
    Request& r = all[i];
    for (std::size_t n = 1 + rng() % 40; n > 0; --n)
      r.prompt.push_back(i % 3 ? TokenId(n) : TokenId(rng() % 97));
    r.max_new_tokens = std::int64_t(1 + rng() % 40);
    r.sampling.top_k = i % 2 ? 0 : 1;
    r.sampling.seed = i;
    r.log_probs = 0;
  }
  return all;
}

struct Result {
  std::map<std::size_t, Output> outputs;
  ExpertTokens of_first;  // tokens of each expert after a first request of 11 + 8 tokens
  bool operator==(const Result&) const = default;
};

ExpertTokens count_expert_tokens(Executor& executor) {
  const Submission s =
      executor.submit({.prompt = {1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41}, .max_new_tokens = 8});
  for (bool open = bool(s); open;)
    for (const Response& r : executor.await_responses(s.id, 60s)) open = !r.is_last;
  ExpertTokens all = executor.statistics().expert_tokens;
  for (const std::vector<std::int64_t>& layer : all)
    if (std::accumulate(layer.begin(), layer.end(), std::int64_t{0}) != 2 * (11 + 7))
      OSTRO_THROW(InternalError, "not every token that was computed chose two experts");
  return all;
}

// The outputs of all requests but every tenth, which is cancelled.
std::map<std::size_t, Output> generate(Executor& executor) {
  const std::vector<Request> all = requests();
  std::map<RequestId, std::size_t> index;
  std::map<std::size_t, Output> outputs;
  for (std::size_t i = 0; i < all.size(); ++i) index[executor.submit(all[i]).id] = i;
  for (const auto& [id, i] : index)
    if (i % 10 == 9) executor.cancel(id);
  for (std::size_t open = index.size(); open > 0;)
    for (const Response& r : executor.await_responses(60s)) {
      open -= r.is_last;
      const std::size_t i = index.at(r.id);
      if (i % 10 == 9) continue;
      Output& o = outputs[i];
      o.tokens.insert(o.tokens.end(), r.tokens.begin(), r.tokens.end());
      o.log_probs.insert(o.log_probs.end(), r.log_probs.begin(), r.log_probs.end());
    }
  return outputs;
}

Result generate(const SmallEngine& small, const model::Mapping& mapping,
                comm::Communicator& world) {
  const auto backend = cpu::make_backend({.threads = 1});
  model::EngineWeights weights(small.reader());
  engine::Rank rank(weights, small.config(), mapping, *backend, world, {.kv_cache_tokens = 160},
                    Log{});
  if (!rank.leads()) {
    rank.follow();
    return {};
  }
  Result result;
  {
    Executor executor = api::make_executor(rank, small.config(),
                                           {.capacity_policy = CapacityPolicy::max_utilization});
    result.of_first = count_expert_tokens(executor);
    result.outputs = generate(executor);
    executor.shutdown(Drain::yes);
    api::rethrow_failure(executor);
    if (executor.statistics().pauses == 0 || executor.statistics().reused_tokens == 0)
      OSTRO_THROW(InternalError, "nothing paused, or nothing was reused");
  }
  rank.end();
  return result;
}

int run(SmallEngine& small, int stages) {
  const auto world = comm::local::start_ranks(stages);
  int code = 0;
  std::string message;
  try {
    const auto many = generate(small, {.tp = 1, .pp = stages}, world->communicator());
    if (world->communicator().rank() == 0) {
      const auto one = generate(small, {}, *comm::make_single());
      if (one.outputs.size() != 54 || one.of_first.size() != 4 || one != many) {
        code = 1;
        message = text(stages, " stages generate something else than one");
      }
    }
  } catch (const std::exception& e) {
    code = 1;
    message = e.what();
  }
  const bool leads = world->communicator().rank() == 0;
  const comm::Outcome end = world->finish(code, message);
  if (!end.message.empty()) std::fprintf(stderr, "%s\n", end.message.c_str());
  if (!leads) std::_Exit(end.code);  // the engine's directory is rank 0's to remove
  return end.code;
}

}  // namespace
}  // namespace ostro

int main() {
  ostro::model::EngineConfig config = ostro::testing_engine::small_config();
  config.model.layers = 4;
  ostro::testing_engine::SmallEngine small(config);
  for (const int stages : {2, 4}) {
    const pid_t child = ::fork();  // one program of ranks each
    if (child < 0) return 1;
    if (child == 0) std::_Exit(ostro::run(small, stages));
    int status = 0;
    if (::waitpid(child, &status, 0) != child || status != 0) return 1;
  }
  return 0;
}
