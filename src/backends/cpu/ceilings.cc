#include "backends/cpu/ceilings.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "backends/cpu/isa.h"
#include "backends/cpu/threads.h"

namespace ostro::cpu {
namespace {

constexpr std::int64_t kBytes = std::int64_t{256} << 20;  // eight times a large L3
constexpr int kRuns = 7;

double best_read(const Kernels& kernels, Threads& threads, const void* memory,
                 bool processor_time) {
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const double start = bench_clock(processor_time);
    threads.parallel([&](int thread) {
      const Range part = part_of(kBytes / 4096, thread, threads.count());
      kernels.read_memory(static_cast<const char*>(memory) + part.begin * 4096, part.size() * 4096);
    });
    best = std::max(best, double(kBytes) / (bench_clock(processor_time) - start));
  }
  return best;
}

double best_multiply_add(const Kernels& kernels, Threads& threads, Element type,
                         bool processor_time) {
  constexpr std::int64_t kSteps = 1 << 20;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    double done = 0;
    const double start = bench_clock(processor_time);
    threads.parallel([&](int thread) {
      const double here = kernels.peak_multiply_add(type, kSteps);
      if (thread == 0) done = here * threads.count();
    });
    best = std::max(best, done / (bench_clock(processor_time) - start));
  }
  return best;
}

}  // namespace

double bench_clock(bool processor_time) {
  timespec t{};
  ::clock_gettime(processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

Ceilings measure_ceilings(const Options& options, bool processor_time) {
  const Kernels& kernels = choose_kernels(options.isa);
  Threads threads(options.threads == 0 ? available_processors() : options.threads);
  Threads one(1);
  Ceilings c;
  c.threads = threads.count();
  const Buffer huge = allocate_host(kBytes);
  std::memset(huge.data(), 1, kBytes);
  c.read_bytes = best_read(kernels, threads, huge.data(), processor_time);
  c.read_bytes_one = best_read(kernels, one, huge.data(), processor_time);
  const Buffer small = allocate_host(kBytes);
  ::madvise(small.data(), kBytes, MADV_NOHUGEPAGE);
  std::memset(small.data(), 1, kBytes);
  c.read_bytes_small = best_read(kernels, threads, small.data(), processor_time);
  c.f32_multiply_adds = best_multiply_add(kernels, threads, Element::f32, processor_time);
  c.bf16_multiply_adds = best_multiply_add(kernels, threads, Element::bf16, processor_time);
  return c;
}

}  // namespace ostro::cpu
