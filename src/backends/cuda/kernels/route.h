#pragma once

#include <cuda_runtime.h>

#include "ops/moe.h"

namespace ostro::cuda {

void route(cudaStream_t, const ops::Route&);
// The same, with the same bits, for many tokens, where route_prompts_takes() them.
bool route_prompts_takes(const ops::Route&);
void route_prompts(cudaStream_t, const ops::Route&);

}  // namespace ostro::cuda
