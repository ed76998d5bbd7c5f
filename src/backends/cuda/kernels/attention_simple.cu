// ops::PagedAttention on CUDA without tensor cores: float32, and head sizes or rows that are not in
// packs of 16 bytes. The contract is in ops/attention.h.
//
// Grid:     one warp for each query head of each token, four a block. 32 positions at a time: a
//           lane scores one position, then sums up to 8 columns of the values.
// Order:    by absolute position alone, so results do not depend on the step.
// Bound by: the latency of its loads; each query reads its whole context. It is right, not quick.
// Floor on an H100: as attention_mma.cuh. Not measured.
#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/requests.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = kMostHeadDim / 32;  // of a lane

template <class T, class C>
__global__ void __launch_bounds__(kWarps * 32)
    attention_simple_kernel(const T* q, std::int64_t q_stride, DeviceRequests requests,
                            DeviceCache cache, const C* k_cache, const C* v_cache, T* y,
                            std::int64_t y_stride, std::int64_t tokens, int heads, int head_dim,
                            float scale, int window) {
  __shared__ float queries[kWarps][kMostHeadDim];
  begin_kernel();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const std::int64_t item = std::int64_t(blockIdx.x) * kWarps + warp;
  const std::int64_t t = item / heads;
  if (t >= tokens || is_padding(requests, int(t))) return;
  const int head = int(item % heads), kv_head = head / (heads / cache.kv_heads);
  const int request = request_of_token(requests, int(t));
  const int position = position_of_token(requests, request, int(t));
  const std::int32_t* blocks = requests.block_table + request * requests.table_stride;
  float* const query = queries[warp];
  for (int i = lane; i < head_dim; i += 32)
    query[i] = widen(q[t * q_stride + std::int64_t(head) * head_dim + i]) * scale;
  __syncwarp();

  const int first = window > 0 ? max(0, position - window + 1) : 0;
  float most = -INFINITY, all = 0, sum[kColumns] = {};
  for (int p0 = first / 32 * 32; p0 <= position; p0 += 32) {
    const int p = p0 + lane;
    const std::int64_t row = first <= p && p <= position ? cache.row(blocks, kv_head, p) : -1;
    float score = -INFINITY;
    if (row >= 0) {
      score = 0;
      const C* const k = k_cache + row * cache.k_stride;
      for (int i = 0; i < head_dim; ++i) score = fmaf(query[i], widen(k[i]), score);
    }
    const float new_most = fmaxf(most, warp_max(score));
    const float keep = most == -INFINITY ? 0 : expf(most - new_most);
    const float weight = row >= 0 ? expf(score - new_most) : 0;
    most = new_most;
    all = all * keep + warp_sum(weight);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] *= keep;
    for (int j = 0; j < 32; ++j) {
      const std::int64_t v_row = __shfl_sync(~0u, row, j);
      const float w = __shfl_sync(~0u, weight, j);
      if (v_row < 0) continue;
      const C* const v = v_cache + v_row * cache.v_stride;
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (lane + 32 * c < head_dim) sum[c] = fmaf(w, widen(v[lane + 32 * c]), sum[c]);
    }
  }
  T* const out = y + t * y_stride + std::int64_t(head) * head_dim;
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    if (lane + 32 * c < head_dim) out[lane + 32 * c] = rounded_to<T>(sum[c] / all);
}

}  // namespace

void attention_simple(cudaStream_t stream, const ops::PagedAttention& op) {
  const std::int64_t head_dim = op.cache.k.cols;
  OSTRO_SUPPORTED(head_dim <= kMostHeadDim,
                  "PagedAttention on CUDA has kernels for head_dim <= ", kMostHeadDim, ", not ",
                  head_dim);
  visit_dtype<float, f16, bf16>(op.q.dtype, "PagedAttention on CUDA", [&]<class T>() {
    using E = device_t<T>;
    const auto with = [&]<class C>(const C* k, const C* v) {
      launch(
          stream,
          {.blocks = ceil_div<std::int64_t>(op.q.rows * op.heads, kWarps), .threads = kWarps * 32},
          attention_simple_kernel<E, C>, static_cast<const E*>(op.q.data), op.q.row_stride,
          device_requests(op.requests), device_cache(op.cache), k, v, static_cast<E*>(op.y.data),
          op.y.row_stride, op.q.rows, int(op.heads), int(head_dim), op.scale, int(op.window));
    };
    const void *k = op.cache.k.data, *v = op.cache.v.data;
    if (op.cache.k.dtype == DType::f8e4m3)
      with(static_cast<const device_t<f8e4m3>*>(k), static_cast<const device_t<f8e4m3>*>(v));
    else
      with(static_cast<const E*>(k), static_cast<const E*>(v));
  });
}

}  // namespace ostro::cuda
