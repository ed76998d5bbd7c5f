#include "cli/bench_latency.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "backends/cpu/ceilings.h"
#include "base/clock.h"
#include "engine/engine.h"
#include "plan/work.h"

namespace ostro::cli {
namespace {

using model::ModelConfig;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Runs requests to their end; tells how long their tokens took.
class Timer {
 public:
  explicit Timer(Session& session)
      : engine_(session.rank, session.config.model), rng_(1), vocab_(session.config.model.vocab) {}

  void submit(std::int64_t prompt_len, std::int64_t output_len) {
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < prompt_len; ++i)
      ids.push_back(std::int32_t(rng_() % std::uint64_t(vocab_)));
    engine_.submit({.prompt = std::move(ids),
                    .max_new_tokens = output_len,
                    .sampling = {},
                    .end_ids = {},
                    .logits = false,
                    .prompt_logits = false,
                    .prompt_log_probs = false,
                    .log_probs = false});
  }

  // Seconds until every request of the batch had a token, and from then to the end; the tokens that
  // came then.
  struct Times {
    double first = 0;
    double decoding = 0;
    std::size_t tokens = 0;
  };
  Times run(std::size_t requests) {
    Times times;
    std::size_t started = 0;
    const Stopwatch whole;
    while (!engine_.idle()) {
      const std::size_t tokens = engine_.step().size();
      if (started < requests) {
        started += tokens;
        times.first = whole.seconds();
      } else {
        times.tokens += tokens;
      }
    }
    times.decoding = whole.seconds() - times.first;
    return times;
  }

 private:
  engine::Engine engine_;
  std::mt19937_64 rng_;
  std::int64_t vocab_;
};

// One row of the table: what was timed and what bounds it.
struct Row {
  std::string what;
  double seconds = 0;
  double tokens = 0;
  plan::Work work;

  double bound_seconds(const cpu::Ceilings& c, DType dtype) const {
    const double rate = dtype == DType::bf16 ? c.bf16_multiply_adds : c.f32_multiply_adds;
    return std::max(work.bytes / c.read_bytes, work.multiply_adds / rate);
  }
};

// Empty where the steps do not run on this host's CPU: there its ceilings say nothing.
using Ceilings = std::optional<cpu::Ceilings>;

void print(const std::vector<Row>& rows, const Ceilings& c, const Session& session) {
  std::printf("%s", session.backend.description().c_str());
  if (c)
    std::printf("; ceilings measured now: read %.1f GB/s, bf16 %.0f GFLOP/s, f32 %.0f GFLOP/s",
                c->read_bytes / 1e9, 2e-9 * c->bf16_multiply_adds, 2e-9 * c->f32_multiply_adds);
  std::printf("\n%-22s %10s %12s %9s %10s %8s %s\n", "", "ms", "tokens/s", "GB/s", "GFLOP/s",
              "experts", c ? "of limit" : "");
  for (const Row& r : rows) {
    std::printf("%-22s %10.3f %12.1f %9.1f %10.1f %8.2f", r.what.c_str(), r.seconds * 1e3,
                r.tokens / r.seconds, r.work.bytes / r.seconds / 1e9,
                2e-9 * r.work.multiply_adds / r.seconds, r.work.experts);
    if (c)
      std::printf(" %6.0f %%", 100 * r.bound_seconds(*c, session.config.model.dtype) / r.seconds);
    std::printf("\n");
  }
  std::printf("experts: in use in a layer, expected of random routing; medians\n");
  if (c)
    std::printf(
        "of limit: the slower of reading weights, keys and values and of multiplying, at those "
        "ceilings, over the time\n");
}

void print_json(const std::vector<Row>& rows, const Ceilings& c, const Session& session) {
  nlohmann::json out = {{"device", session.backend.description()},
                        {"rows", nlohmann::json::array()}};
  if (c) {
    out["read_bytes_per_s"] = c->read_bytes;
    out["bf16_flop_per_s"] = 2 * c->bf16_multiply_adds;
    out["f32_flop_per_s"] = 2 * c->f32_multiply_adds;
  }
  for (const Row& r : rows) {
    nlohmann::json row = {
        {"what", r.what}, {"seconds", r.seconds}, {"tokens_per_s", r.tokens / r.seconds}};
    if (c) row["of_limit"] = r.bound_seconds(*c, session.config.model.dtype) / r.seconds;
    out["rows"].push_back(row);
  }
  std::printf("%s\n", out.dump(2).c_str());
}

void measure(const LatencyFlags& flags, Session& session) {
  const ModelConfig& config = session.config.model;
  Timer timer(session);
  // Caches, workspaces and clocks; and on a CPU the weights move to huge pages meanwhile.
  const Stopwatch warming;
  do {
    timer.submit(8, 16);
    timer.run(1);
  } while (warming.seconds() < flags.warm_up);

  std::vector<Row> rows;
  for (std::int64_t input : flags.input_lens) {
    std::vector<double> seconds;
    for (int i = 0; i < flags.repetitions; ++i) {
      timer.submit(input, 1);
      seconds.push_back(timer.run(1).first);
    }
    rows.push_back({text("prefill ", input), median(seconds), double(input),
                    plan::work_of_step(config, double(input), 1)});
  }
  const std::int64_t context = flags.prompt_len + flags.output_len / 2;
  for (std::int64_t batch : flags.batch_sizes) {
    const double cached =
        double(batch) * double(config.window > 0 ? std::min(config.window, context) : context);
    std::vector<double> seconds;
    for (int i = 0; i < flags.repetitions; ++i) {
      for (std::int64_t r = 0; r < batch; ++r) timer.submit(flags.prompt_len, flags.output_len);
      // A repetition counts by its mean, so that the steps' differing experts are all in it: for a
      // token of every request, which on a pipeline come from several steps.
      const Timer::Times times = timer.run(std::size_t(batch));
      seconds.push_back(times.decoding / double(times.tokens) * double(batch));
    }
    rows.push_back({text("decode batch ", batch), median(seconds), double(batch),
                    plan::work_of_step(config, double(batch), double(batch), cached)});
  }
  Ceilings ceilings;
  if (session.backend.device() == Device::cpu)
    ceilings = cpu::measure_ceilings({.threads = flags.runtime.threads});
  flags.json ? print_json(rows, ceilings, session) : print(rows, ceilings, session);
}

}  // namespace

void LatencyFlags::add(CLI::App& app) {
  runtime.add(app);
  app.add_option("--input_len", input_lens, "prompt lengths whose prefill is timed")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--batch_size", batch_sizes, "requests decoded at once")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--prompt_len", prompt_len, "tokens of each request before decoding is timed")
      ->capture_default_str();
  app.add_option("--output_len", output_len, "tokens that each request decodes")
      ->capture_default_str();
  app.add_option("--repetitions", repetitions, "the median of so many counts")
      ->capture_default_str();
  app.add_option("--warm_up", warm_up, "seconds of work before timing begins")
      ->capture_default_str();
  app.add_flag("--json", json, "print one JSON object");
}

int bench_latency(const LatencyFlags& flags) {
  OSTRO_REQUIRE(flags.repetitions > 0 && flags.output_len > 1 && flags.prompt_len > 0,
                "--repetitions is ", flags.repetitions, ", --output_len ", flags.output_len,
                ", --prompt_len ", flags.prompt_len, "; at least 1, 2 and 1 are needed");
  for (std::int64_t n : flags.input_lens)
    OSTRO_REQUIRE(n > 0, "--input_len has ", n, "; it must be at least 1");
  for (std::int64_t n : flags.batch_sizes)
    OSTRO_REQUIRE(n > 0, "--batch_size has ", n, "; it must be at least 1");
  return run_on_ranks(flags.runtime, 0, [&](Session& session) { measure(flags, session); });
}

}  // namespace ostro::cli
