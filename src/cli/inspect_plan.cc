#include "cli/inspect_plan.h"

#include <algorithm>
#include <cstdio>

#include "plan/layouts.h"

namespace ostro::cli {
namespace {

using model::Mapping;

constexpr const char* kGroup = "Plan";
constexpr const char* kShapeGroup = "Shape of a plan without an engine";

double gb(double bytes) { return bytes / 1e9; }

plan::Question question_of(const PlanFlags& flags, const model::EngineConfig& e) {
  plan::Question q{.config = e.model,
                   .machine = plan::machine(flags.gpu),
                   .limits = {},
                   .work = {},
                   .kv_fraction = flags.kv_fraction};
  if (flags.memory_gb > 0) q.machine.memory_bytes = flags.memory_gb * 1e9;
  OSTRO_REQUIRE(q.machine.memory_bytes > q.machine.reserved_bytes, "--memory_gb is ",
                flags.memory_gb, "; the driver alone takes ", gb(q.machine.reserved_bytes));
  const std::int64_t usual = std::min<std::int64_t>(1000, e.model.context / 2);
  const std::int64_t input = flags.input_len > 0 ? flags.input_len : usual;
  const std::int64_t output = flags.output_len > 0 ? flags.output_len : usual;
  OSTRO_REQUIRE(input + output <= e.model.context, "--input_len ", input, " and --output_len ",
                output, " are more than the context of ", e.model.context);
  q.work = {.input = double(input), .output = double(output)};
  const auto limit = [](std::int64_t given, std::int64_t built) {
    return given > 0 ? std::min(given, built) : built;
  };
  q.limits.requests = limit(flags.max_batch_size, e.limits.max_batch_size);
  q.limits.tokens =
      std::max(q.limits.requests, limit(flags.max_num_tokens, e.limits.max_num_tokens));
  q.limits.logit_rows = q.limits.requests;
  q.limits.block_tokens = e.limits.tokens_per_block;
  q.limits.context = e.model.context;
  return q;
}

void print_head(const plan::Question& q) {
  const model::ModelConfig& c = q.config;
  const auto format = [&](model::Quantization::Format f) {
    using Format = model::Quantization::Format;
    return std::string(f == Format::none ? model::dtype_flag(c.dtype) : model::name(f));
  };
  std::printf(
      "%s, %lld layers, hidden %lld; weights %s, KV cache %s; %s with %.1f GB, %.1f of them the "
      "driver's\nsteps of %lld requests and %lld tokens\n",
      c.architecture.c_str(), static_cast<long long>(c.layers), static_cast<long long>(c.hidden),
      format(c.quantization.weights).c_str(), format(c.quantization.kv_cache).c_str(),
      q.machine.name.c_str(), gb(q.machine.memory_bytes), gb(q.machine.reserved_bytes),
      static_cast<long long>(q.limits.requests), static_cast<long long>(q.limits.tokens));
}

// A rank's memory, a line each.
void print_memory(const plan::Question& q, const Mapping& m) {
  std::printf("\nmemory, GB: tp %lld x pp %lld, experts tp %lld x ep %lld\n",
              static_cast<long long>(m.tp), static_cast<long long>(m.pp),
              static_cast<long long>(m.moe_tp), static_cast<long long>(m.moe_ep));
  std::printf("%4s %9s %9s %9s %7s %7s %9s %7s %9s %12s\n", "rank", "experts", "attention",
              "embedding", "head", "others", "weights", "a step", "KV cache", "KV B/token");
  const plan::Capacity c = plan::capacity(q.config, m, q.limits, q.free_bytes(), q.kv_fraction);
  for (std::int64_t r = 0; r < m.ranks(); ++r) {
    const plan::WeightBytes w = plan::weights_of_rank(q.config, m, r);
    const plan::MemoryPlan p = plan::plan_memory(q.config, m, r, q.limits);
    const double per_token = double(p.block_bytes) / double(q.limits.block_tokens);
    std::printf("%4lld %9.3f %9.3f %9.3f %7.3f %7.3f %9.3f %7.3f %9.3f %12.0f\n",
                static_cast<long long>(r), gb(double(w.experts)), gb(double(w.attention)),
                gb(double(w.embedding)), gb(double(w.head)), gb(double(w.router + w.norms)),
                gb(double(p.weights_bytes)), gb(double(p.working_bytes())),
                gb(per_token * double(c.kv_tokens)), per_token);
  }
  if (c.fits()) {
    const double left = double(q.free_bytes()) -
                        double(c.plan.weights_bytes + c.plan.working_bytes()) -
                        double(c.plan.block_bytes) * double(c.kv_tokens / q.limits.block_tokens);
    std::printf(
        "fits: the KV cache has %lld tokens, %.1f sequences of the whole context of %lld; rank "
        "%lld "
        "bounds it and keeps %.2f GB free\n",
        static_cast<long long>(c.kv_tokens), double(c.kv_tokens) / double(q.limits.context),
        static_cast<long long>(q.limits.context), static_cast<long long>(c.rank), gb(left));
    return;
  }
  std::printf(
      "does not fit: rank %lld needs %s (weights %s, a step %s, a block of KV cache), there "
      "are %s\n",
      static_cast<long long>(c.rank), plan::gigabytes(c.plan.least_bytes()).c_str(),
      plan::gigabytes(c.plan.weights_bytes).c_str(),
      plan::gigabytes(c.plan.working_bytes()).c_str(), plan::gigabytes(q.free_bytes()).c_str());
  for (const std::string& flags : plan::what_would_fit(q, m))
    std::printf("  would fit: %s\n", flags.c_str());
}

// A step through all stages, one after the other.
void print_step(const plan::Question& q, const Mapping& m, const char* what, std::int64_t rows,
                const plan::StepLoad& load) {
  plan::StageTime all;
  double wire = 0;
  for (std::int64_t s = 0; s < m.pp; ++s) {
    const plan::StageTime t = plan::stage_time(q.config, m, q.machine, load, s, q.sum_bytes);
    all.experts += t.experts;
    all.dense += t.dense;
    all.attention += t.attention;
    all.head += t.head;
    all.all_reduce += t.all_reduce;
    all.send += t.send;
    wire = std::max(wire, t.wire_bytes);
  }
  std::printf("%-8s %6lld %9.2f %11.0f %9.2f %9.2f %9.2f %7.2f %9.2f %10.2f\n", what,
              static_cast<long long>(rows), all.total() * 1e3, double(rows) / all.total(),
              all.experts * 1e3, all.dense * 1e3, all.attention * 1e3, all.head * 1e3,
              (all.all_reduce + all.send) * 1e3, wire / 1e6);
}

void print_steps(const plan::Question& q, const Mapping& m) {
  const double context = q.work.input + q.work.output / 2;
  std::printf(
      "\nleast time of a step, ms (a limit; links are estimates), decoding at context %.0f; MB "
      "that "
      "a rank sends\n%-8s %6s %9s %11s %9s %9s %9s %7s %9s %10s\n",
      context, "", "tokens", "ms", "tokens/s", "experts", "q,k,v,o", "attention", "head",
      "messages", "MB sent");
  for (std::int64_t batch : {1, 2, 4, 8, 16, 32, 64, 128, 256})
    print_step(q, m, "decode", batch, {.decodes = double(batch), .context = context});
  for (std::int64_t n : {128, 512, 2048, 8192})
    if (n <= q.limits.tokens && n <= q.limits.context)
      print_step(q, m, "prefill", n, {.prompt_tokens = double(n), .prompt_context = double(n) / 2});
}

std::string name_of(const plan::Layout& l) {
  return text(l.engines, l.engines == 1 ? " engine" : " engines", " of tp ", l.mapping.tp, " x pp ",
              l.mapping.pp, ", ep ", l.mapping.moe_ep);
}

// What takes the most of the busiest stage's time.
std::string bound_of(const plan::StageTime& t) {
  const std::pair<double, const char*> parts[] = {{t.experts, "the experts"},
                                                  {t.dense, "attention's matrices"},
                                                  {t.attention, "attention"},
                                                  {t.head, "the head"},
                                                  {t.all_reduce + t.send, "messages"}};
  const auto most = *std::max_element(std::begin(parts), std::end(parts));
  return text(most.second, ", ", int(100 * most.first / t.total() + 0.5), " % of it");
}

void print_auto(const plan::Question& q, std::int64_t gpus) {
  std::vector<plan::Layout> all = plan::layouts(q, gpus);
  std::stable_sort(all.begin(), all.end(), [](const plan::Layout& a, const plan::Layout& b) {
    return a.output_per_s() > b.output_per_s();
  });
  std::printf(
      "\nlayouts of %lld GPUs, requests of %.0f + %.0f tokens; limits: no kernel reaches them; "
      "links "
      "are estimates\n%7s %3s %3s %3s %9s %11s %9s %9s %9s %9s %9s\n",
      static_cast<long long>(gpus), q.work.input, q.work.output, "engines", "tp", "pp", "ep",
      "weights", "KV tokens", "requests", "out tok/s", "ms/token", "alone ms", "prompt ms");
  for (const plan::Layout& l : all) {
    const plan::Estimate& e = l.estimate;
    std::printf("%7lld %3lld %3lld %3lld %6.1f GB", static_cast<long long>(l.engines),
                static_cast<long long>(l.mapping.tp), static_cast<long long>(l.mapping.pp),
                static_cast<long long>(l.mapping.moe_ep), gb(double(e.memory.plan.weights_bytes)));
    if (e.sequences > 0)
      std::printf(" %11lld %9.0f %9.0f %9.2f %9.2f %9.1f\n",
                  static_cast<long long>(e.memory.kv_tokens * l.engines),
                  e.sequences * double(l.engines), l.output_per_s(), e.per_token_s * 1e3,
                  e.alone_token_s * 1e3, e.alone_prompt_s * 1e3);
    else
      std::printf(" does not fit: a rank needs %s\n",
                  plan::gigabytes(e.memory.plan.least_bytes()).c_str());
  }
  const auto throughput = plan::best(all, plan::Goal::throughput);
  const auto latency = plan::best(all, plan::Goal::latency);
  if (!throughput) {
    std::printf(
        "no layout of %lld GPUs holds a request of %.0f tokens; --enable_fp8, --fp8_kv_cache "
        "or more --gpus take less of each\n",
        static_cast<long long>(gpus), q.work.input + q.work.output);
    return;
  }
  std::printf(
      "recommended: %s: %.0f output tokens/s, the most (of those within 3 %%, the fastest "
      "alone); bounded by %s\n",
      name_of(*throughput).c_str(), throughput->output_per_s(),
      bound_of(throughput->estimate.busiest).c_str());
  std::printf("for the shortest answers: %s: %.2f ms a token of a request alone\n",
              name_of(*latency).c_str(), latency->estimate.alone_token_s * 1e3);
}

}  // namespace

void PlanFlags::add(CLI::App& app) {
  const char* group = kGroup;
  app.add_option("--plan", plan,
                 "what running takes and how fast it can be; with `auto`, of each layout of --gpus")
      ->expected(0, 1)
      ->group(group);
  app.add_option("--gpu", gpu, "h100 or h200")->capture_default_str()->group(group);
  app.add_option("--memory_gb", memory_gb, "of each GPU; default: that of --gpu")->group(group);
  app.add_option("--gpus", gpus, "with --plan auto: how many, 1 to 64")->group(group);
  app.add_option("--tp_size", tp_size, "tensor-parallel ranks; default: the engine's")
      ->group(group);
  app.add_option("--pp_size", pp_size, "pipeline stages; default: the engine's")->group(group);
  app.add_option("--moe_ep_size", moe_ep_size, "groups that hold different experts")->group(group);
  app.add_option("--max_batch_size", max_batch_size, "as of run")->group(group);
  app.add_option("--max_num_tokens", max_num_tokens, "as of run")->group(group);
  app.add_option("--kv_cache_free_gpu_memory_fraction", kv_fraction, "as of run")
      ->capture_default_str()
      ->group(group);
  app.add_option("--input_len", input_len, "tokens of a request's prompt; default: 1000")
      ->group(group);
  app.add_option("--output_len", output_len, "and of its answer; default: 1000")->group(group);
  const char* shape_group = kShapeGroup;
  shape.add(app, shape_group);
  app.add_option("--dtype", dtype, "auto, float32, float16 or bfloat16")
      ->capture_default_str()
      ->group(shape_group);
  quantisation.add(app, shape_group, "");
}

bool PlanFlags::owns(const CLI::Option& option) {
  return option.get_group() == kGroup || option.get_group() == kShapeGroup;
}

void print_plan(const PlanFlags& flags, const std::string& engine_dir) {
  OSTRO_REQUIRE(flags.plan.empty() || flags.plan == "auto", "--plan is \"", flags.plan,
                "\"; it takes no value or auto");
  const bool all = flags.plan == "auto";
  OSTRO_REQUIRE(all ? flags.gpus >= 1 && flags.gpus <= 64 : flags.gpus == 0, "--gpus is ",
                flags.gpus, "; it must be from 1 to 64 with --plan auto, and goes with that alone");
  OSTRO_REQUIRE(!all || (flags.tp_size == 0 && flags.pp_size == 0 && flags.moe_ep_size == 0),
                "--plan auto tries every --tp_size, --pp_size and --moe_ep_size: give none");
  const std::pair<const char*, std::int64_t> sizes[] = {{"--tp_size", flags.tp_size},
                                                        {"--pp_size", flags.pp_size},
                                                        {"--moe_ep_size", flags.moe_ep_size},
                                                        {"--max_batch_size", flags.max_batch_size},
                                                        {"--max_num_tokens", flags.max_num_tokens},
                                                        {"--input_len", flags.input_len},
                                                        {"--output_len", flags.output_len}};
  for (const auto& [flag, value] : sizes)
    OSTRO_REQUIRE(value >= 0, flag, " is ", value, "; it must be at least 1");
  OSTRO_REQUIRE(flags.kv_fraction > 0 && flags.kv_fraction <= 1,
                "--kv_cache_free_gpu_memory_fraction is ", flags.kv_fraction,
                "; it must be in (0, 1]");
  OSTRO_REQUIRE(flags.memory_gb >= 0, "--memory_gb is ", flags.memory_gb, "; it must be above 0");
  RuntimeFlags runtime;
  runtime.dummy_weights = flags.shape.given();
  OSTRO_REQUIRE(runtime.dummy_weights || (flags.dtype == "auto" && !flags.quantisation.given()),
                "--dtype, --enable_fp8, --fp8_kv_cache and --use_weight_only go with --preset or "
                "another shape: an engine has its own");
  runtime.shape = flags.shape;
  runtime.dtype = flags.dtype;
  runtime.quantisation = flags.quantisation;
  runtime.engine_dir = engine_dir;
  runtime.tp_size = flags.tp_size;
  runtime.pp_size = flags.pp_size;
  runtime.moe_ep_size = flags.moe_ep_size;
  const model::EngineConfig e = config_of(runtime);
  OSTRO_REQUIRE(!all || e.model.dtype != DType::f32,
                "--plan auto has no rates for float32: give --dtype bfloat16 or float16");
  const plan::Question q = question_of(flags, e);
  if (all) {
    print_head(q);
    print_auto(q, flags.gpus);
    return;
  }
  const Mapping mapping = chosen_mapping(runtime, e);
  print_head(q);
  print_memory(q, mapping);
  if (e.model.dtype == DType::f32)
    std::printf("no step times: a GPU's rate of float32 is not known here\n");
  else
    print_steps(q, mapping);
}

}  // namespace ostro::cli
