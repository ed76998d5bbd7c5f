// What this machine gives at best: the denominators of every speed that is reported for the CPU.
#pragma once

#include "backends/cpu/backend.h"

namespace ostro::cpu {

struct Ceilings {
  int threads = 0;
  double read_bytes = 0;          // a second, all threads, memory in huge pages
  double read_bytes_small = 0;    // a second, all threads, memory in 4 KiB pages
  double read_bytes_one = 0;      // a second, one thread, huge pages
  double f32_multiply_adds = 0;   // a second, all threads
  double bf16_multiply_adds = 0;  // a second, all threads; f32's where there is no bf16 unit
};

// Takes about a second and 512 MiB. Each figure is the best of several runs, in processor time of
// the calling thread (right for one thread on a machine that others use) or in time of day.
Ceilings measure_ceilings(const Options& options = {}, bool processor_time = false);

// Seconds of one of these clocks, from any start.
double bench_clock(bool processor_time);

}  // namespace ostro::cpu
