#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/plan/attention_plan.h"
#include "ops/attention.h"

namespace ostro::cuda {

// Largest head_dim of either kernel.
inline constexpr std::int64_t kMostHeadDim = 256;

// True if attention_mma can take it: 16-bit, the cache's rows packs of 16 bytes.
bool attention_mma_takes(const ops::PagedAttention&);
// True if it can take plans of warpgroups too: head_dim 64 or 128, pages of a multiple of 8 tokens.
bool attention_wgmma_takes(const ops::PagedAttention&);
// True if it can take plans of single tokens: wgmma's conditions, queries aligned to 16 bytes, few
// heads to a key head.
bool attention_decode_takes(const ops::PagedAttention&);

// Floats of scratch that attention_mma needs for its parts.
std::int64_t attention_scratch(const ops::PagedAttention&, const AttentionPlan&);

void attention_mma(cudaStream_t, const ops::PagedAttention&, const AttentionPlan&, float* scratch);
void attention_simple(cudaStream_t, const ops::PagedAttention&);

}  // namespace ostro::cuda
