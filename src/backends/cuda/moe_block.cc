// MoeBlock: two launches around the products of its experts, where there are kernels for that.
#include "backends/cuda/kernels/moe_block.h"

#include "backends/cuda/cuda_backend.h"

namespace ostro::cuda {

void CudaBackend::enqueue(const ops::MoeBlock& op) {
  if (!moe_block_takes(op)) return Backend::enqueue(op);
  begin(op.norm.residual);
  const E4m3Rows* const x = rounded_by(op.norm);
  const ExpertSums sums = routed_sums(op.mlp, [&](int token_tile, const ExpertGroups& groups) {
    norm_route(stream_, op, x, token_tile, groups, static_cast<unsigned*>(finished_.data()));
  });
  combine_norm(stream_, op, sums, rounded_by(op.next));
}

}  // namespace ostro::cuda
