#include "comm/sum.h"

#include <algorithm>

namespace ostro::comm {
namespace {

// A block's sum stays in the first-level cache while every part is added to it.
constexpr std::int64_t kBlock = 1024;

}  // namespace

void sum_in_rank_order(std::span<const float* const> parts, float* sum, std::int64_t n) {
  // Apart from `sum`, which may be a part: adding into it would spoil that part for its turn.
  float block[kBlock];
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, n - begin);
    std::copy_n(parts[0] + begin, size, block);
    for (const float* part : parts.subspan(1)) {
      const float* x = part + begin;
      for (std::int64_t i = 0; i < size; ++i) block[i] += x[i];
    }
    std::copy_n(block, size, sum + begin);
  }
}

}  // namespace ostro::comm
