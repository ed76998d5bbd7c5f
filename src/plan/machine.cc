#include "plan/machine.h"

#include "base/error.h"

namespace ostro::plan {
namespace {

// Measured on an H100 80 GB HBM3: reads of 3.12-3.17 TB/s, 8192^3 products of 757 TFLOP/s in bf16
// and 1385 in fp8, 81 559 MiB of memory. Estimates: what the driver takes and the links. NVLink 4
// carries 450 GB/s each way, of which NCCL's large all-reduces of 8 GPUs use about 370 (their "bus
// bandwidth"); one of a few rows takes about 10 us. Between nodes: a 400 Gb/s port a GPU, 48 GB/s
// of it used; about 30 us.
Machine h100() {
  return {.name = "h100",
          .memory_bytes = 81559.0 * 1024 * 1024,
          .reserved_bytes = 0.6e9,
          .read_bytes_per_s = 3.15e12,
          .matrix_flop_per_s = 757e12,
          .fp8_flop_per_s = 1385e12,
          .gpus_per_node = 8,
          .inside = {.bytes_per_s = 370e9, .latency_s = 10e-6},
          .between = {.bytes_per_s = 48e9, .latency_s = 30e-6}};
}

// The same chip with 143 771 MiB that are read at about 4.2 TB/s (estimate).
Machine h200() {
  Machine m = h100();
  m.name = "h200";
  m.memory_bytes = 143771.0 * 1024 * 1024;
  m.read_bytes_per_s = 4.2e12;
  return m;
}

}  // namespace

Machine machine(std::string_view name) {
  if (name == "h100") return h100();
  if (name == "h200") return h200();
  OSTRO_THROW(InvalidArgument, "there is no GPU \"", name, "\"; known are h100 and h200");
}

}  // namespace ostro::plan
