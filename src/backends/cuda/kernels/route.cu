// ops::Route on CUDA. The contract is in ops/moe.h.
//
// Grid:     one block of 8 warps for each token: warp w sums the logits of experts w, w + 8, ...;
//           warp 0 then chooses.
// Traffic:  reads the token (from L1 after the first expert) and the router, which stays in L2.
// Bound by: latency: a warp reads hidden * 2 bytes in steps of 512. From about 1000 tokens by L2:
//           tokens * experts * hidden * 2 bytes, 134 MB at 2048 tokens of 4096 and 8 experts.
// Floor on an H100 (3.15 TB/s): 2 * tokens * hidden / 3.15e12 s; 5 us at 2048 tokens.
// Measured (H100 80 GB HBM3, cuda_kernels_bench): 5.8 us at 1 to 64 tokens, 22 us at 2048.
#include "backends/cuda/kernels/route.cuh"
#include "backends/cuda/kernels/route.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kPack = 8;
constexpr int kMaxExperts = 1024;  // the contract's limit

template <class X, class R, int kCount>
__global__ void __launch_bounds__(kWarps * 32)
    route_kernel(const X* x, std::int64_t x_stride, const R* router, std::int64_t router_stride,
                 std::int32_t* chosen, std::int64_t chosen_stride, float* weights,
                 std::int64_t weights_stride, unsigned* counts, int hidden, int experts, int top_k,
                 bool renormalize, const std::int32_t* live) {
  __shared__ RouteShared<kMaxExperts> shared;
  begin_kernel();
  const std::int64_t t = blockIdx.x;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const RouteRow to{chosen + t * chosen_stride, weights + t * weights_stride, counts};
  if (live && t >= *live) return choose_none(top_k, to, int(threadIdx.x), kWarps * 32);
  x += t * x_stride;
  for (int e = warp; e < experts; e += kWarps) {
    const R* row = router + e * router_stride;
    float sum = 0;
#pragma unroll 4
    for (int i = lane * kCount; i < hidden; i += 32 * kCount)
      sum = dot(load_pack<kCount>(x + i), load_pack<kCount>(row + i), sum);
    sum = warp_sum(sum);
    if (lane == 0) shared.set(e, sum);
  }
  __syncthreads();
  if (warp == 0) choose_experts(shared, experts, top_k, renormalize, to, [](int, int) {});
}

}  // namespace

void route(cudaStream_t stream, const ops::Route& op) {
  const View& router = op.router.data;
  const bool packs = op.x.cols % kPack == 0 && rows_aligned(op.x, 16) && rows_aligned(router, 16);
  const auto start = [&]<class X, class R>() {
    launch(stream, {.blocks = op.x.rows, .threads = kWarps * 32},
           packs ? route_kernel<X, R, kPack> : route_kernel<X, R, 1>,
           static_cast<const X*>(op.x.data), op.x.row_stride, static_cast<const R*>(router.data),
           router.row_stride, static_cast<std::int32_t*>(op.experts.data), op.experts.row_stride,
           static_cast<float*>(op.weights.data), op.weights.row_stride,
           static_cast<unsigned*>(op.counts.data), int(op.x.cols), int(router.rows),
           int(op.experts.cols), op.renormalize, static_cast<const std::int32_t*>(op.live.data));
  };
  visit_dtype<float, f16, bf16>(op.x.dtype, "Route on CUDA", [&]<class X>() {
    if (router.dtype == op.x.dtype)
      start.template operator()<device_t<X>, device_t<X>>();
    else
      start.template operator()<device_t<X>, float>();
  });
}

}  // namespace ostro::cuda
