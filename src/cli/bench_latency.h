// ostro bench latency: how long a prompt and a token take.
#pragma once

#include "cli/runtime.h"

namespace ostro::cli {

struct LatencyFlags {
  RuntimeFlags runtime;
  std::vector<std::int64_t> input_lens = {128, 512};
  std::vector<std::int64_t> batch_sizes = {1, 8, 32};
  std::int64_t prompt_len = 32;  // tokens before the decoding that is timed
  std::int64_t output_len = 64;
  int repetitions = 5;
  double warm_up = 5;  // seconds
  bool json = false;

  void add(CLI::App& app);
};

int bench_latency(const LatencyFlags&);

}  // namespace ostro::cli
