#pragma once

#include <cuda_runtime.h>

#include "ops/sample.h"

namespace ostro::cuda {

void sample(cudaStream_t, const ops::Sample&);

}  // namespace ostro::cuda
