// Times the CPU's operations against ceilings measured in the same run.
//
//   cpu_kernels_bench [--shape tiny|mid|8x7B] [--tokens 1,8,32] [--prefill] [--context 1024]
//                     [--threads n] [--isa name] [--dtype bf16] [--only part-of-a-name]
//                     [--seconds s] [--processor-time]
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "backends/cpu/ceilings.h"
#include "backends/cpu/kernel_bench.h"

namespace {

using namespace ostro;

double fraction(const cpu::Timing& t, const cpu::Ceilings& c, DType dtype) {
  const double peak = dtype == DType::bf16 ? c.bf16_multiply_adds : c.f32_multiply_adds;
  return std::max(t.bytes / c.read_bytes, t.multiply_adds / peak) / t.median_s;
}

int run(int count, char** values) {
  cpu::Options options;
  cpu::BenchWork work;
  std::string shape_name = "mid", tokens = "1,8,32,128,512,2048";
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name == "--prefill" || name == "--processor-time") {
      (name == "--prefill" ? work.prefill : work.processor_time) = true;
      continue;
    }
    OSTRO_REQUIRE(i + 1 < count, name, " needs a value");
    const std::string value = values[++i];
    if (name == "--shape")
      shape_name = value;
    else if (name == "--tokens")
      tokens = value;
    else if (name == "--context")
      work.context = std::stoll(value);
    else if (name == "--threads")
      options.threads = std::stoi(value);
    else if (name == "--isa")
      options.isa = value;
    else if (name == "--only")
      work.only = value;
    else if (name == "--seconds")
      work.seconds = std::stod(value);
    else if (name == "--dtype")
      work.dtype = value == "f32" ? DType::f32 : value == "f16" ? DType::f16 : DType::bf16;
    else
      OSTRO_REQUIRE(false, "no option ", name);
  }
  const cpu::BenchShape& shape = shape_name == "tiny"   ? cpu::kTiny
                                 : shape_name == "8x7B" ? cpu::kMixtral
                                                        : cpu::kMid;
  const auto backend = cpu::make_backend(options);
  const cpu::Ceilings c = cpu::measure_ceilings(options, work.processor_time);
  std::printf(
      "%s: read %.1f GB/s (4 KiB pages %.1f, one thread %.1f), bf16 %.0f, f32 %.0f GFLOP/s\n",
      backend->description().c_str(), c.read_bytes / 1e9, c.read_bytes_small / 1e9,
      c.read_bytes_one / 1e9, 2e-9 * c.bf16_multiply_adds, 2e-9 * c.f32_multiply_adds);
  std::printf("%-24s %7s %12s %12s %8s %9s %s\n",
              (shape.name + " " + std::string(name(work.dtype))).c_str(), "tokens", "best us",
              "median us", "GB/s", "GFLOP/s", "of the ceiling (median)");
  std::istringstream list(tokens);
  for (std::string part; std::getline(list, part, ',');) {
    work.tokens = std::stoll(part);
    cpu::time_kernels(*backend, shape, work, [&](const cpu::Timing& t) {
      std::printf("%-24s %7lld %12.1f %12.1f %8.1f %9.0f %5.0f %%\n", t.name.c_str(),
                  static_cast<long long>(work.tokens), t.best_s * 1e6, t.median_s * 1e6,
                  t.bytes / t.median_s / 1e9, 2 * t.multiply_adds / t.median_s / 1e9,
                  100 * fraction(t, c, work.dtype));
      std::fflush(stdout);
    });
  }
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(count, values);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}
