#include "cli/bench_throughput.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>

#include "api/make_executor.h"
#include "backends/cpu/ceilings.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/math.h"
#include "cli/progress.h"
#include "plan/work.h"
#include "text/chat_template.h"

namespace ostro::cli {
namespace {

constexpr auto kLongWait = std::chrono::milliseconds(1000);

// Texts and conversations become token ids, in place.
void encode(std::vector<loadgen::Item>& items, const std::string& tokenizer_dir) {
  const bool texts = std::any_of(items.begin(), items.end(),
                                 [](const loadgen::Item& item) { return item.ids.empty(); });
  if (!texts) return;
  OSTRO_REQUIRE(!tokenizer_dir.empty(), "the data set has texts: give --tokenizer_dir");
  const auto tokenizer = txt::load_tokenizer(tokenizer_dir);
  const auto chat = txt::ChatTemplate::load(tokenizer_dir, *tokenizer);
  for (loadgen::Item& item : items) {
    if (!item.ids.empty()) continue;
    if (item.messages.is_null()) {
      item.ids = tokenizer->encode(item.prompt);
      continue;
    }
    std::vector<txt::ChatMessage> messages;
    for (const nlohmann::json& m : item.messages) {
      const JsonObject o(m, "a message of the data set");
      messages.push_back({.role = o.string("role"), .content = o.string("content")});
    }
    item.ids = tokenizer->encode(chat.render(messages, true),
                                 {.add_special_tokens = false, .parse_special = true});
  }
}

// Runs requests through the executor; one thread submits, receives and notes the times.
class Runner {
 public:
  Runner(Executor& executor, const ThroughputFlags& flags, const Load& load)
      : executor_(executor), flags_(flags), load_(load) {}

  struct Result {
    std::vector<loadgen::Record> records;
    std::vector<IterationStatistics> steps;
    ExecutorStatistics end;
  };

  // Short requests, as many at once as will be, for some seconds. On a CPU the weights move to huge
  // pages meanwhile.
  void warm_up(double seconds) {
    constexpr std::size_t kTokens = 16, kMostAtOnce = 64;
    const Stopwatch watch;
    for (std::size_t round = 0; watch.seconds() < seconds; ++round) {
      std::vector<Request> requests(std::min(load_.items.size(), kMostAtOnce));
      for (std::size_t i = 0; i < requests.size(); ++i) {
        requests[i] = request_of(load_.items[i]);
        std::vector<TokenId>& ids = requests[i].prompt;
        ids.resize(std::min(ids.size(), kTokens));
        requests[i].max_new_tokens = std::min<std::int64_t>(requests[i].max_new_tokens, kTokens);
        requests[i].cache_salt = "warm-up";  // the measured requests reuse nothing of it
      }
      for (Request& r : requests) executor_.submit(std::move(r));
      while (executor_.statistics().open > 0) executor_.await_responses(kLongWait);
    }
    while (!executor_.await_responses(std::chrono::milliseconds(0)).empty()) continue;
    executor_.take_iteration_statistics();
    api::rethrow_failure(executor_);
  }

  Result measure() {
    const std::size_t n = load_.items.size();
    Result result;
    result.records.resize(n);
    std::map<RequestId, std::size_t> open;
    std::size_t next = 0, ended = 0;
    ProgressBar bar("bench throughput");
    const Stopwatch clock;
    while (ended < n) {
      for (; next < n && load_.arrivals_s[next] <= clock.seconds(); ++next) {
        loadgen::Record& record = result.records[next];
        record.start_s = clock.seconds();
        record.input_tokens = std::int64_t(load_.items[next].ids.size());
        const Submission s = executor_.submit(request_of(load_.items[next]));
        if (s) {
          open.emplace(s.id, next);
          continue;
        }
        record.error = s.message;
        record.end_s = record.start_s;
        ++ended;
      }
      auto wait = kLongWait;
      if (next < n)
        wait = std::clamp(std::chrono::milliseconds(
                              std::int64_t(1000 * (load_.arrivals_s[next] - clock.seconds()))),
                          std::chrono::milliseconds(open.empty() ? 1 : 0), kLongWait);
      const auto responses = executor_.await_responses(wait);
      const double now = clock.seconds();
      for (const Response& r : responses) {
        const auto it = open.find(r.id);
        loadgen::Record& record = result.records[it->second];
        if (!r.tokens.empty()) record.arrived_s.push_back(now);
        if (!r.is_last) continue;
        record.end_s = now;
        record.output_tokens = r.statistics.output_tokens;
        if (r.finish == FinishReason::error) record.error = r.error;
        open.erase(it);
        ++ended;
      }
      const auto steps = executor_.take_iteration_statistics();
      result.steps.insert(result.steps.end(), steps.begin(), steps.end());
      bar.show(double(ended) / double(n),
               [&] { return text(ended, '/', n, " requests, ", open.size(), " open"); });
    }
    bar.clear();
    api::rethrow_failure(executor_);
    result.end = executor_.statistics();
    return result;
  }

 private:
  Request request_of(const loadgen::Item& item) const {
    Request r{.prompt = item.ids, .max_new_tokens = item.max_tokens};
    r.sampling.temperature = float(flags_.load.temperature);
    r.sampling.top_k = flags_.load.temperature == 0 ? 1 : 0;
    r.sampling.seed = flags_.load.seed;
    if (!load_.ignore_eos(flags_.load)) r.end_ids = executor_.model().end_ids;
    return r;
  }

  Executor& executor_;
  const ThroughputFlags& flags_;
  const Load& load_;
};

// What the steps tell.
struct StepFigures {
  loadgen::Distribution step_ms;
  double in_steps_s = 0;          // of the whole time
  std::int64_t most_running = 0;  // sequences in a step
  double mean_running = 0;
  std::int64_t most_kv_blocks = 0;
  // From the first step with nine tenths of the most sequences to the last one.
  std::int64_t full_running = 0;
  double full_s = 0;
  double full_output_tokens = 0;
  std::size_t full_steps = 0;
  // The least time for the same steps at the machine's ceilings, over their time; empty: unknown.
  std::optional<double> of_limit;

  double full_rate() const { return full_s > 0 ? full_output_tokens / full_s : 0; }
};

StepFigures figures_of(const std::vector<IterationStatistics>& steps) {
  StepFigures f;
  std::vector<double> ms;
  for (const IterationStatistics& s : steps) {
    ms.push_back(s.step_s * 1000);
    f.in_steps_s += s.step_s;
    f.most_running = std::max(f.most_running, s.running);
    f.mean_running += double(s.running) / double(steps.size());
    f.most_kv_blocks = std::max(f.most_kv_blocks, s.kv_blocks_used);
  }
  f.step_ms = loadgen::Distribution::of(std::move(ms));
  f.full_running = ceil_div<std::int64_t>(9 * f.most_running, 10);
  const auto full = [&](const IterationStatistics& s) { return s.running >= f.full_running; };
  const auto first = std::find_if(steps.begin(), steps.end(), full);
  const auto last = std::find_if(steps.rbegin(), steps.rend(), full).base();
  if (first == steps.end()) return f;
  f.full_s = (last - 1)->end_s - (first->end_s - first->step_s);
  f.full_steps = std::size_t(last - first);
  for (auto s = first; s != last; ++s) f.full_output_tokens += double(s->output_tokens);
  return f;
}

// Each step at the slower of reading its weights once and multiplying.
double least_seconds(const std::vector<IterationStatistics>& steps, const cpu::Ceilings& c,
                     const model::ModelConfig& config) {
  const double rate = config.dtype == DType::bf16 ? c.bf16_multiply_adds : c.f32_multiply_adds;
  double seconds = 0;
  for (const IterationStatistics& s : steps) {
    const plan::Work work = plan::work_of_step(config, double(s.prompt_tokens + s.output_tokens),
                                               double(s.output_tokens));
    seconds += std::max(work.bytes / c.read_bytes, work.multiply_adds / rate);
  }
  return seconds;
}

void print(const ThroughputFlags& flags, const Session& session, const loadgen::Summary& s,
           const StepFigures& f, const ExecutorStatistics& end, const loadgen::Goodput& goodput) {
  std::printf("%s; capacity policy %s\n%s", session.backend.description().c_str(),
              flags.capacity_policy.c_str(), loadgen::to_text(s, goodput).c_str());
  std::printf("%-8s %10.2f %10.2f %10.2f %10.2f %10.2f\n", "step", f.step_ms.mean, f.step_ms.p50,
              f.step_ms.p90, f.step_ms.p99, f.step_ms.max);
  std::printf("steps     %zu, %.1f %% of the time; %.1f sequences in the mean, at most %lld\n",
              f.step_ms.count, 100 * f.in_steps_s / s.duration_s, f.mean_running,
              static_cast<long long>(f.most_running));
  std::printf(
      "steady    %.1f output tokens/s over %.2f s and %zu steps, from the first to the last "
      "with %lld sequences or more\n",
      f.full_rate(), f.full_s, f.full_steps, static_cast<long long>(f.full_running));
  std::printf(
      "KV cache  at most %.1f %% of %lld tokens used, %lld pauses, %lld prompt tokens "
      "reused\n",
      100 * double(f.most_kv_blocks) / double(end.kv_blocks_total),
      static_cast<long long>(end.kv_blocks_total * end.kv_block_tokens),
      static_cast<long long>(end.pauses), static_cast<long long>(end.reused_tokens));
  if (f.of_limit)
    std::printf(
        "of limit  %.0f %%: the least time for these steps (weights read once, or "
        "multiplied) at ceilings measured now, over the whole time\n",
        100 * *f.of_limit);
}

nlohmann::ordered_json to_json(const ThroughputFlags& flags, const Session& session,
                               const Load& load, const loadgen::Summary& s, const StepFigures& f,
                               const ExecutorStatistics& end) {
  nlohmann::ordered_json out = to_json(flags.load, load);
  if (!flags.runtime.dummy_weights) out["engine_dir"] = flags.runtime.engine_dir;
  out["device"] = session.backend.description();
  out["capacity_policy"] = flags.capacity_policy;
  out["max_batch_size"] = session.rank.limits().requests;
  out["max_num_tokens"] = session.rank.limits().tokens;
  out.update(loadgen::to_json(s, load.goodput));
  out["steady_duration"] = f.full_s;
  out["steady_output_throughput"] = f.full_rate();
  out["steps"] = f.step_ms.count;
  out["mean_step_ms"] = f.step_ms.mean;
  out["p50_step_ms"] = f.step_ms.p50;
  out["p90_step_ms"] = f.step_ms.p90;
  out["p99_step_ms"] = f.step_ms.p99;
  out["in_steps"] = f.in_steps_s / s.duration_s;
  out["mean_running"] = f.mean_running;
  out["max_running"] = f.most_running;
  out["kv_cache_tokens"] = end.kv_blocks_total * end.kv_block_tokens;
  out["max_kv_cache_usage"] = double(f.most_kv_blocks) / double(end.kv_blocks_total);
  out["pauses"] = end.pauses;
  out["reused_tokens"] = end.reused_tokens;
  if (f.of_limit) out["of_limit"] = *f.of_limit;
  return out;
}

void measure(const ThroughputFlags& flags, const Load& load, Session& session) {
  Runner::Result result;
  {
    Executor executor =
        api::make_executor(session.rank, session.config,
                           {.capacity_policy = parse_capacity_policy(flags.capacity_policy),
                            .kv_cache = {.block_reuse = flags.block_reuse},
                            .iteration_statistics = 100'000});
    Runner runner(executor, flags, load);
    runner.warm_up(flags.warm_up);
    result = runner.measure();
    executor.shutdown(Drain::yes);
  }
  const loadgen::Summary summary = loadgen::summarise(result.records, load.goodput);
  OSTRO_REQUIRE(summary.completed > 0, "all ", load.items.size(),
                " requests failed; the first: ", result.records[0].error);
  StepFigures figures = figures_of(result.steps);
  if (session.backend.device() == Device::cpu)
    figures.of_limit =
        least_seconds(result.steps, cpu::measure_ceilings({.threads = flags.runtime.threads}),
                      session.config.model) /
        summary.duration_s;
  if (flags.load.json != "-") print(flags, session, summary, figures, result.end, load.goodput);
  if (!flags.load.json.empty())
    write_json(flags.load.json, to_json(flags, session, load, summary, figures, result.end));
}

}  // namespace

void ThroughputFlags::add(CLI::App& app) {
  runtime.add(app);
  load.add(app);
  app.add_option("--tokenizer_dir", load.tokenizer_dir, "tokenizer for a data set of texts")
      ->group("Requests");
  app.add_option(
         "--capacity_policy", capacity_policy,
         "guaranteed_no_evict (a request starts when all that run will fit to their ends) or "
         "max_utilization (it may pause later)")
      ->capture_default_str()
      ->group("Requests");
  app.add_option("--kv_cache_enable_block_reuse", block_reuse,
                 "compute prompts with a common beginning once")
      ->capture_default_str()
      ->group("Requests");
  app.add_option("--warm_up", warm_up, "seconds of work before timing begins")
      ->capture_default_str();
}

int bench_throughput(const ThroughputFlags& flags) {
  parse_capacity_policy(flags.capacity_policy);
  OSTRO_REQUIRE(flags.warm_up >= 0 && flags.warm_up <= 3600, "--warm_up is ", flags.warm_up,
                "; it must be from 0 to 3600 seconds");
  Load load;
  if (prints()) {
    load = make_load(flags.load, config_of(flags.runtime).model.vocab);
    encode(load.items, flags.load.tokenizer_dir);
  }
  return run_on_ranks(flags.runtime, 0, [&](Session& session) { measure(flags, load, session); });
}

}  // namespace ostro::cli
