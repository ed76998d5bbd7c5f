#include "backends/cuda/plan/peer_plan.h"

namespace ostro::cuda {
namespace {

// Two H200, bench/comm/nccl_bench.cc: a sum of one row takes 3.8 us, one of 128, which sends 4 MB,
// 15.1 us: 370 KB cross in 1 us. A second wait is taken for 2 us, about half of the whole one; it
// shows with more than two ranks only, which have not been measured.
constexpr std::int64_t kBytesPerWait = 740'000;

// There, up to 256 rows of 4096 take 0.40 to 0.74 of what NCCL and the norm take, 512 as long, 1024
// 1.1 times as long.
constexpr std::int64_t kMostElements = std::int64_t{512} * 4096;

}  // namespace

bool peer_sum_in_two_rounds(int ranks, std::int64_t elements) {
  const std::int64_t bytes = elements * 8;
  const std::int64_t one = (ranks - 1) * bytes;              // that a GPU sends
  const std::int64_t two = 2 * (ranks - 1) * bytes / ranks;  // of all rows as one of their owners
  return one - two > kBytesPerWait;
}

bool peer_sum_pays(std::int64_t elements) { return elements <= kMostElements; }

}  // namespace ostro::cuda
