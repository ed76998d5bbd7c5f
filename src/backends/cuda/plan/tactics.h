// The token tiles of a model's products as tactics (ops/tactics.h): the plan's, and those that may
// be measured beside it. Host code, no CUDA.
#pragma once

#include <vector>

#include "ops/tactics.h"

namespace ostro::cuda {

// The tokens of the tile that gemm_plan.h chooses on so many multiprocessors.
int planned_tile(const ops::Product&, std::int64_t tokens, int processors);

// Every tile that a kernel has for the product, the smallest first.
std::vector<int> tiles_of(const ops::Product&);

// Those that may be the fastest for so many tokens.
std::vector<int> tiles_to_try(const ops::Product&, std::int64_t tokens);

}  // namespace ostro::cuda
