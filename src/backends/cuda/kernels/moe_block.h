// ops::MoeBlock around its products: what is one launch before them and one after them.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/kernels/moe.h"
#include "backends/cuda/kernels/quantise.h"
#include "ops/moe_block.h"

namespace ostro::cuda {

// Whether there are kernels for `op`; else its four operations do it.
bool moe_block_takes(const ops::MoeBlock& op);

// op.norm, op.route and group_by_expert() of op.mlp, of up to kMostNormRouteTokens; `rounded` as of
// add_rms_norm(). `finished`: a counter in device memory, zero before and after.
inline constexpr std::int64_t kMostNormRouteTokens = 256;
void norm_route(cudaStream_t, const ops::MoeBlock& op, const E4m3Rows* rounded, int token_tile,
                const ExpertGroups&, unsigned* finished);

// op.norm and op.route of more tokens, where norm_route_prompts_takes() them. norm.y is left
// unwritten if the products take `rounded`.
bool norm_route_prompts_takes(const ops::MoeBlock& op);
void norm_route_prompts(cudaStream_t, const ops::MoeBlock& op, const E4m3Rows* rounded,
                        int processors);

// combine_experts() and op.next; `sums` are of the two products enqueued last.
void combine_norm(cudaStream_t, const ops::MoeBlock& op, const ExpertSums& sums,
                  const E4m3Rows* rounded);

}  // namespace ostro::cuda
