// MoeBlock: two launches around the products of its experts, where there are kernels for that.
#include "backends/cuda/kernels/moe_block.h"

#include "backends/cuda/cuda_backend.h"

namespace ostro::cuda {

void CudaBackend::enqueue(const ops::MoeBlock& op) {
  if (!moe_block_takes(op)) return Backend::enqueue(op);
  begin(op.norm.residual);
  // What a norm's output is rounded to, if it is.
  const auto rounded = [&](const ops::AddRmsNorm& norm) -> const E4m3Rows* {
    rounded_ = {};
    if (norm.activations == ops::Activations::as_is || norm.y.cols == 0) return nullptr;
    rounded_ = {.from = norm.y, .rows = e4m3_rows(x_e4m3_, norm.y.rows, norm.y.cols, 1)};
    return &rounded_.rows;
  };
  const E4m3Rows* const x = rounded(op.norm);
  const ExpertSums sums = routed_sums(op.mlp, [&](int token_tile, const ExpertGroups& groups) {
    norm_route(stream_, op, x, token_tile, groups, static_cast<unsigned*>(finished_.data()));
  });
  combine_norm(stream_, op, sums, rounded(op.next));
}

}  // namespace ostro::cuda
