#pragma once

#include <cuda_runtime.h>

#include "ops/moe.h"

namespace ostro::cuda {

void route(cudaStream_t, const ops::Route&);

}  // namespace ostro::cuda
