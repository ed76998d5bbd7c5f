// ostro bench throughput: many requests through an executor of this process.
#pragma once

#include "cli/load_flags.h"
#include "cli/runtime.h"

namespace ostro::cli {

struct ThroughputFlags {
  RuntimeFlags runtime;
  LoadFlags load;
  std::string capacity_policy = "guaranteed_no_evict";
  bool block_reuse = true;
  double warm_up = 5;  // seconds

  void add(CLI::App& app);
};

int bench_throughput(const ThroughputFlags&);

}  // namespace ostro::cli
