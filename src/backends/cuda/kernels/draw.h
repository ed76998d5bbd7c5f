#pragma once

#include <cuda_runtime.h>

#include "ops/draw.h"

namespace ostro::cuda {

void draw(cudaStream_t, const ops::Draw&);

}  // namespace ostro::cuda
