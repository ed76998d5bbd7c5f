// The launcher of attention_mma.cuh.
#include "backends/cuda/kernels/attention_mma.h"

#include <algorithm>

#include "backends/cuda/kernels/element.cuh"

namespace ostro::cuda {

bool attention_mma_takes(const ops::PagedAttention& op) {
  const std::int64_t head_dim = op.cache.k.cols;
  constexpr std::int64_t kMostRows = 0x7fffffff;  // the kernel keeps them in 32 bits
  const bool packs = std::size_t(head_dim) * size_of(op.cache.k.dtype) % 16 == 0;
  return op.q.dtype != DType::f32 && op.cache.k.rows <= kMostRows && packs &&
         head_dim <= kMostHeadDim && rows_aligned(op.q, 4) && rows_aligned(op.cache.k, 16) &&
         rows_aligned(op.cache.v, 16);
}

bool attention_wgmma_takes(const ops::PagedAttention& op) {
  const std::int64_t head_dim = op.cache.k.cols;
  return attention_mma_takes(op) && (head_dim == 64 || head_dim == 128) && rows_aligned(op.y, 4) &&
         op.cache.block_tokens % 8 == 0;
}

bool attention_decode_takes(const ops::PagedAttention& op) {
  return attention_wgmma_takes(op) && rows_aligned(op.q, 16) &&
         op.heads <= kMostDecodeGroup * op.cache.kv_heads;
}

std::int64_t attention_scratch(const ops::PagedAttention& op, const AttentionPlan& plan) {
  if (plan.splits == 1) return 0;
  return op.q.rows * op.heads * plan.splits * ops::attention_part_floats(op.cache.k.cols);
}

void attention_mma(cudaStream_t stream, const ops::PagedAttention& op, const AttentionPlan& plan,
                   float* scratch) {
  constexpr double kLog2E = 1.4426950408889634;
  const std::int64_t head_dim = op.cache.k.cols;
  AttentionArgs args{};
  args.q = op.q.data;
  args.q_stride = op.q.row_stride;
  args.requests = device_requests(op.requests);
  args.cache = device_cache(op.cache);
  args.k = op.cache.k.data;
  args.v = op.cache.v.data;
  args.y = op.y.data;
  args.y_stride = op.y.row_stride;
  args.tokens = op.q.rows;
  args.cache_rows = op.cache.k.rows;
  args.heads = int(op.heads);
  args.group = int(op.heads / op.cache.kv_heads);
  args.head_dim = int(head_dim);
  args.window = int(std::min<std::int64_t>(op.window, 0x3fffffff));
  args.row_tiles = int(plan.row_tiles);
  args.scale_log2 = float(op.scale * kLog2E);
  args.splits = plan.splits;
  args.sums = scratch;
  args.totals = scratch ? scratch + op.q.rows * op.heads * plan.splits * head_dim : nullptr;
  visit_dtype<f16, bf16>(op.q.dtype, "PagedAttention on CUDA", [&]<class T>() {
    const bool e4m3 = op.cache.k.dtype == DType::f8e4m3;
    if (plan.decode) {
      if constexpr (std::is_same_v<T, bf16>)
        return (e4m3 ? attention_decode_bf16_e4m3 : attention_decode_bf16)(stream, args,
                                                                           plan.blocks);
      else
        return (e4m3 ? attention_decode_f16_e4m3 : attention_decode_f16)(stream, args, plan.blocks);
    }
    if (plan.wgmma) {
      if constexpr (std::is_same_v<T, bf16>)
        return (e4m3 ? attention_wgmma_bf16_e4m3 : attention_wgmma_bf16)(stream, args, plan.blocks);
      else
        return (e4m3 ? attention_wgmma_f16_e4m3 : attention_wgmma_f16)(stream, args, plan.blocks);
    }
    if constexpr (std::is_same_v<T, bf16>)
      (e4m3 ? attention_mma_bf16_e4m3 : attention_mma_bf16)(stream, args, plan.warps);
    else
      (e4m3 ? attention_mma_f16_e4m3 : attention_mma_f16)(stream, args, plan.warps);
  });
}

}  // namespace ostro::cuda
