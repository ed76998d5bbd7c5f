// How many blocks sequences that advance together will need at most.
#pragma once

#include <cstdint>
#include <vector>

namespace ostro::sched {

// A sequence that gains one position a step and then gives everything back.
struct Growing {
  std::int64_t positions = 0;  // now
  std::int64_t left = 0;    // steps until it ends, at most; it still holds its blocks in the last
  std::int64_t shared = 0;  // blocks of its that do not count: others hold them too
};

// The maximum over steps t >= 0 from now of the sum over all sequences with left >= t of
//   ceil((positions + t) / block_tokens) - shared
// 0 for no sequences. One that ends early only lowers it. Takes
// O(sequences * log(sequences) + different `left` * block_tokens).
std::int64_t future_peak(std::vector<Growing>, std::int64_t block_tokens);

}  // namespace ostro::sched
