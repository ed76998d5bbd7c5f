// ostro bench: an engine's latency and throughput, a server under load, and each kernel against
// this machine's ceilings.
#include <cstdio>

#include "backends/cpu/ceilings.h"
#include "backends/cpu/kernel_bench.h"
#include "cli/bench_latency.h"
#include "cli/bench_serve.h"
#include "cli/bench_throughput.h"
#include "cli/commands.h"

namespace ostro::cli {
namespace {

struct KernelFlags {
  std::string shape = "mid", dtype = "bfloat16", isa = "auto", only;
  std::vector<std::int64_t> tokens = {1, 8, 32, 128, 512};
  std::int64_t context = 1024;
  int threads = 0;
  double seconds = 0.2;

  void add(CLI::App& app);
};

void KernelFlags::add(CLI::App& app) {
  app.add_option("--shape", shape, "tiny (tiny-mixtral), mid (0.79 B) or 8x7B")
      ->capture_default_str();
  app.add_option("--tokens", tokens, "rows of a step")->delimiter(',')->capture_default_str();
  app.add_option("--context", context, "cached tokens of each request")->capture_default_str();
  app.add_option("--dtype", dtype, "float32, float16 or bfloat16")->capture_default_str();
  app.add_option("--isa", isa, "auto, or an instruction set this processor has")
      ->capture_default_str();
  app.add_option("--threads", threads, "default: every core");
  app.add_option("--only", only, "kernels whose name contains this");
  app.add_option("--seconds", seconds, "time spent on each")->capture_default_str();
}

int bench_kernels(const KernelFlags& flags) {
  const cpu::BenchShape* shape = nullptr;
  for (const cpu::BenchShape* known : {&cpu::kTiny, &cpu::kMid, &cpu::kMixtral})
    if (known->name == flags.shape) shape = known;
  OSTRO_REQUIRE(shape, "--shape is \"", flags.shape, "\"; it must be tiny, mid or 8x7B");
  const cpu::Options options{.threads = flags.threads, .isa = flags.isa};
  cpu::BenchWork work;
  work.dtype = model::parse_dtype(flags.dtype);
  work.context = flags.context;
  work.only = flags.only;
  work.seconds = flags.seconds;

  const auto backend = cpu::make_backend(options);
  const cpu::Ceilings c = cpu::measure_ceilings(options);
  std::printf(
      "%s; ceilings measured now: read %.1f GB/s (4 KiB pages %.1f, one thread %.1f), "
      "bf16 %.0f GFLOP/s, f32 %.0f GFLOP/s\n",
      backend->description().c_str(), c.read_bytes / 1e9, c.read_bytes_small / 1e9,
      c.read_bytes_one / 1e9, 2e-9 * c.bf16_multiply_adds, 2e-9 * c.f32_multiply_adds);
  std::printf("%-24s %7s %12s %9s %10s %9s\n", flags.shape.c_str(), "tokens", "median us", "GB/s",
              "GFLOP/s", "of limit");
  const double rate = work.dtype == DType::bf16 ? c.bf16_multiply_adds : c.f32_multiply_adds;
  for (std::int64_t tokens : flags.tokens) {
    OSTRO_REQUIRE(tokens > 0, "--tokens has ", tokens, "; it must be at least 1");
    work.tokens = tokens;
    cpu::time_kernels(*backend, *shape, work, [&](const cpu::Timing& t) {
      const double bound = std::max(t.bytes / c.read_bytes, t.multiply_adds / rate);
      std::printf("%-24s %7lld %12.1f %9.1f %10.1f %7.0f %%\n", t.name.c_str(),
                  static_cast<long long>(tokens), t.median_s * 1e6, t.bytes / t.median_s / 1e9,
                  2e-9 * t.multiply_adds / t.median_s, 100 * bound / t.median_s);
      std::fflush(stdout);
    });
  }
  return 0;
}

}  // namespace

int bench_command(const Arguments& args) {
  const std::string what = args.empty() ? "" : args[0];
  const Arguments rest(args.begin() + (args.empty() ? 0 : 1), args.end());
  CLI::App latency_app("Times prompts and tokens of an engine.", "ostro bench latency");
  LatencyFlags latency;
  latency.add(latency_app);
  CLI::App throughput_app("Runs many requests through an engine.", "ostro bench throughput");
  ThroughputFlags throughput;
  throughput.add(throughput_app);
  CLI::App serve_app("Sends requests to a server with OpenAI's API.", "ostro bench serve");
  ServeBenchFlags serve;
  serve.add(serve_app);
  CLI::App kernels_app("Times each kernel at a model's shapes.", "ostro bench kernels");
  KernelFlags kernels;
  kernels.add(kernels_app);
  if (what == "latency") return parse(latency_app, rest) ? bench_latency(latency) : 0;
  if (what == "throughput") return parse(throughput_app, rest) ? bench_throughput(throughput) : 0;
  if (what == "serve") return parse(serve_app, rest) ? bench_serve(serve) : 0;
  if (what == "kernels") return parse(kernels_app, rest) ? bench_kernels(kernels) : 0;
  if (what == "--help" || what == "-h") {
    for (const CLI::App* app : {&latency_app, &throughput_app, &serve_app, &kernels_app})
      std::printf("%s\n", app->help().c_str());
    return 0;
  }
  OSTRO_THROW(InvalidArgument,
              "ostro bench needs what to measure: latency, throughput, serve or kernels",
              what.empty() ? "" : ", not \"" + what + "\"");
}

}  // namespace ostro::cli
