// Ops that work on one row after the other.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/kernels/quantise.h"
#include "ops/embed.h"
#include "ops/norm.h"

namespace ostro::cuda {

void embed(cudaStream_t, const ops::Embed&);
void gather_rows(cudaStream_t, const ops::GatherRows&);
// With `rounded`, y also by quantise_rows().
void add_rms_norm(cudaStream_t, const ops::AddRmsNorm&, const E4m3Rows* rounded);

}  // namespace ostro::cuda
