// MoeBlock: what stands around the products of its experts in one launch before them and one after
// them, where there are kernels for that.
#include "backends/cuda/kernels/moe_block.h"

#include "backends/cuda/cuda_backend.h"

namespace ostro::cuda {

void CudaBackend::enqueue(const ops::MoeBlock& op) {
  if (!moe_block_takes(op)) return Backend::enqueue(op);
  begin(op.norm.residual);
  const bool few = op.norm.y.rows <= kMostNormRouteTokens;
  const E4m3Rows* x = nullptr;
  if (few) {
    x = rounded_by(op.norm);
  } else if (norm_route_prompts_takes(op)) {
    norm_route_prompts(stream_, op, rounded_by(op.norm), processors_);
  } else {
    enqueue(op.norm);
    enqueue(op.route);
  }
  const ExpertSums sums = routed_sums(op.mlp, [&](int token_tile, const ExpertGroups& groups) {
    few ? norm_route(stream_, op, x, token_tile, groups, static_cast<unsigned*>(finished_.data()))
        : group_by_expert(stream_, op.mlp, token_tile, groups);
  });
  combine_norm(stream_, op, sums, rounded_by(op.next));
}

}  // namespace ostro::cuda
