// What a GPU and the links between GPUs give at best.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ostro::plan {

// Between the ranks of a group. An all-reduce of n ranks takes
// latency + 2 (n - 1) / n * bytes / bytes_per_s.
struct Link {
  double bytes_per_s = 0;  // each way, of one GPU
  double latency_s = 0;    // of a collective on a few bytes, or of one send
};

struct Machine {
  std::string name;
  double memory_bytes = 0;
  double reserved_bytes = 0;  // of the driver and the process's context
  double read_bytes_per_s = 0;
  double matrix_flop_per_s = 0;  // bf16 and f16
  double fp8_flop_per_s = 0;
  std::int64_t gpus_per_node = 8;
  Link inside;   // a node
  Link between;  // nodes
};

// "h100" (80 GB, SXM) or "h200"; throws InvalidArgument with the names that exist.
Machine machine(std::string_view name);

}  // namespace ostro::plan
