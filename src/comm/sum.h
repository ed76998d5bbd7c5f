// The one sum of all transports: in rank order, so that every rank and every size gives the same
// bits.
#pragma once

#include <cstdint>
#include <span>

namespace ostro::comm {

// sum[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ...  for i in [0, n). `sum` may be one of
// the parts, from its first element on.
void sum_in_rank_order(std::span<const float* const> parts, float* sum, std::int64_t n);

}  // namespace ostro::comm
