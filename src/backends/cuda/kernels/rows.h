// Ops that work on one row after the other.
#pragma once

#include <cuda_runtime.h>

#include "ops/embed.h"
#include "ops/norm.h"

namespace ostro::cuda {

void embed(cudaStream_t, const ops::Embed&);
void gather_rows(cudaStream_t, const ops::GatherRows&);
void add_rms_norm(cudaStream_t, const ops::AddRmsNorm&);

}  // namespace ostro::cuda
