// The second kernel of attention whose positions are split: joins the parts in order.
#pragma once

#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {

// Joins the parts of one query head of one token, a block each.
constexpr int kJoinThreads = 64;
template <class T>
__global__ void __launch_bounds__(kJoinThreads) join_parts_kernel(const AttentionArgs a) {
  begin_kernel();
  const std::int64_t token = blockIdx.x / a.heads;
  const int head = int(blockIdx.x % a.heads);
  if (is_padding(a.requests, int(token))) return;
  const int request = request_of_token(a.requests, int(token));
  const int position = position_of_token(a.requests, request, int(token));
  const int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const std::int64_t part0 = (token * a.heads + head) * a.splits;
  for (int i = int(threadIdx.x); i < a.head_dim; i += kJoinThreads) {
    float most = -INFINITY, total = 0, sum = 0;
    for (int split = first / kSplitTokens; split <= position / kSplitTokens; ++split) {
      const std::int64_t part = part0 + split;
      const Join join(most, a.totals[2 * part]);
      sum = join(sum, a.sums[part * a.head_dim + i]);
      total = join(total, a.totals[2 * part + 1]);
      most = join.most;
    }
    static_cast<T*>(a.y)[token * a.y_stride + std::int64_t(head) * a.head_dim + i] =
        rounded_to<T>(__fmul_rn(sum, __frcp_rn(total)));
  }
}

template <class T>
void join_parts(cudaStream_t stream, const AttentionArgs& args) {
  launch(stream, {.blocks = args.tokens * args.heads, .threads = kJoinThreads},
         join_parts_kernel<T>, args);
}

}  // namespace ostro::cuda
