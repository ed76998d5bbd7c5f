#pragma once

#include <cuda_runtime.h>

#include "ops/attention.h"

namespace ostro::cuda {

void rotary_angles(cudaStream_t, const ops::RotaryAngles&);
void rotary_append(cudaStream_t, const ops::RotaryAppend&);

}  // namespace ostro::cuda
