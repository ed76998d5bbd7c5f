#include "sched/future_peak.h"

#include <algorithm>

namespace ostro::sched {

// Between two ends all that is there grows, so only the steps in which a sequence ends count. From
// the last of them back to the first, those that live on are joined by those that end there. Of all
// that are there, ceil((p + t) / b) with p = i b + r and t = j b + s adds up to
//   sum(i) + count * (j + 1) - (count of r = 0, if s = 0) + (count of r > b - s, if s > 0).
std::int64_t future_peak(std::vector<Growing> sequences, std::int64_t block_tokens) {
  std::ranges::sort(sequences, std::greater<>(), &Growing::left);
  std::vector<std::int64_t> with_rest(std::size_t(block_tokens), 0);
  std::int64_t whole_blocks = 0, peak = 0;
  for (std::size_t i = 0; i < sequences.size();) {
    const std::int64_t t = sequences[i].left;
    for (; i < sequences.size() && sequences[i].left == t; ++i) {
      whole_blocks += sequences[i].positions / block_tokens - sequences[i].shared;
      ++with_rest[std::size_t(sequences[i].positions % block_tokens)];
    }
    const std::int64_t rest = t % block_tokens;
    std::int64_t blocks = whole_blocks + std::int64_t(i) * (t / block_tokens + 1);
    if (rest == 0) blocks -= with_rest[0];
    for (std::int64_t r = block_tokens - rest + 1; r < block_tokens; ++r)
      blocks += with_rest[std::size_t(r)];
    peak = std::max(peak, blocks);
  }
  return peak;
}

}  // namespace ostro::sched
