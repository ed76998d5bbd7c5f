#pragma once

#include <cuda_runtime.h>

#include "ops/copy_blocks.h"

namespace ostro::cuda {

void copy_blocks(cudaStream_t, const ops::CopyBlocks&);

}  // namespace ostro::cuda
