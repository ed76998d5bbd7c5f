// The norm and the router of ops::MoeBlock for prompts, by one kernel. The contract is in
// ops/moe_block.h.
//
// Grid:     blocks of 8 warps, up to three a multiprocessor, that take tokens in turns. A block has
//           the router in shared memory, where it comes before the predecessor has ended; it adds
//           and normalises a token's row (norm.cuh), keeps it in shared memory too, and warp w sums
//           the logits of experts w, w + 8, ... While it waits for a row the others compute.
// Numbers:  of every sum in the order of the two operations' kernels, whose bits these are.
// Traffic:  reads x and residual, writes residual, and what the products read: 13 bytes an element
//           with rows of e4m3, 14 with rows of 16 bits. The two operations move 17 and 16.
// Bound by: latency: a block takes 6 us for a token beside two others on its multiprocessor.
// Floor on an H100 (3.15 TB/s): 13 * tokens * hidden / 3.15e12 s; 35 us at 2048 tokens of 4096,
//           138 us at 8192.
// Measured (H200, cuda_kernels_bench f8e4m3, from one norm to the next, with what the same commit
//           changed in moe.cu and after the products; before it): 589 to 601 us at 512 tokens
//           (626), 1460 to 1553 at 2048 (1562), 5564 to 5622 at 8192 (5869). Alone, without x, 130
//           us at 8192.
#include <algorithm>

#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/kernels/moe_block.h"
#include "backends/cuda/kernels/norm.cuh"
#include "backends/cuda/kernels/route.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"

namespace ostro::cuda {
namespace {

constexpr int kWarps = kNormThreads / 32;
constexpr int kPack = 8;  // as route.cu's
// Rows that a thread keeps in registers are of up to 4096 elements, or of up to 8192.
constexpr int kFewSteps = 4;
constexpr int most_blocks(int steps) { return steps <= kFewSteps ? 3 : 2; }  // registers for them
constexpr std::int64_t kProcessorShared = 226 << 10, kMostShared = 200 << 10;
constexpr std::int64_t kOwnShared = 2 << 10;  // of a block, beside the router and a row

template <class T, int kSteps, bool kRound>
__global__ void __launch_bounds__(kNormThreads, most_blocks(kSteps))
    norm_route_prompts_kernel(const AddedRows added, const NormArgs<T, T> norm,
                              const RouteArgs<T> route) {
  using Row = NormRow<T, kNormPack, kSteps>;
  extern __shared__ __align__(16) unsigned char shared_raw[];
  T* const router = reinterpret_cast<T*>(shared_raw);
  T* const normalised = router + route.experts * norm.hidden;
  __shared__ RouteShared<kFewExperts> shared;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for (int e = 0; e < route.experts; ++e)
    for (int i = int(threadIdx.x) * kPack; i < norm.hidden; i += kNormThreads * kPack)
      ptx::copy16(ptx::shared_address(router + e * norm.hidden + i),
                  route.router + e * route.router_stride + i);
  ptx::copy_commit();
  Row row(norm.weight, norm.hidden);
  begin_kernel();
  ptx::copy_wait<0>();

  const std::int64_t live = route.live ? *route.live : route.tokens;
#pragma unroll 1
  for (std::int64_t t = blockIdx.x; t < route.tokens; t += gridDim.x) {
    const float sum = row.add(added, t, norm.residual + t * norm.residual_stride);
    // Waits for the block, which has done with the row before then.
    const float scale = norm_scale(norm_block_sum(sum), norm.hidden, norm.eps);
    row.each([&](int s, int i) {
      const auto out = Row::template normalised<T>(row.weight[s], row.kept[s], scale);
      if (norm.y) store_pack(norm.y + t * norm.y_stride + i, out);
      store_pack(normalised + i, out);
    });
    if constexpr (kRound) {
      const float most = block_max<kNormThreads>(row.most_kept());  // waits, as below
      if (threadIdx.x == 0) norm.rounded.scale[t] = e4m3_scale(most);
      row.round(norm.rounded.data + t * norm.rounded.stride, e4m3_factor(most));
    } else {
      __syncthreads();
    }
#pragma unroll 1
    for (int e = warp; e < route.experts; e += kWarps) {
      float logit = 0;
#pragma unroll 4
      for (int i = lane * kPack; i < norm.hidden; i += 32 * kPack)
        logit = dot(load_pack<kPack>(normalised + i),
                    load_pack<kPack>(router + e * norm.hidden + i), logit);
      logit = warp_sum(logit);
      if (lane == 0) shared.set(e, logit);
    }
    __syncthreads();
    if (warp > 0) continue;
    const RouteRow to{route.chosen + t * route.chosen_stride,
                      route.weights + t * route.weights_stride, route.counts};
    if (t < live)
      choose_experts(shared, route.experts, route.top_k, route.renormalize, to, [](int, int) {});
    else
      choose_none(route.top_k, to, lane, 32);
  }
}

std::int64_t shared_bytes(const ops::MoeBlock& op) {
  return (op.route.router.n() + 1) * op.norm.y.cols * std::int64_t(size_of(op.norm.y.dtype));
}

}  // namespace

bool norm_route_prompts_takes(const ops::MoeBlock& op) {
  return moe_block_takes(op) && shared_bytes(op) <= kMostShared;
}

void norm_route_prompts(cudaStream_t stream, const ops::MoeBlock& op, const E4m3Rows* rounded,
                        int processors) {
  const ops::Route& r = op.route;
  const auto start = [&]<class T, int kSteps>() {
    NormArgs<T, T> norm = norm_args<T, T>(op.norm, rounded);
    if (rounded && op.mlp.local.front().gate.data.dtype == DType::f8e4m3) norm.y = nullptr;
    const std::int64_t shared = shared_bytes(op);
    const std::int64_t blocks =
        std::min<std::int64_t>(most_blocks(kSteps), kProcessorShared / (shared + kOwnShared));
    launch(
        stream,
        {.blocks = std::min(r.x.rows, processors * blocks),
         .threads = kNormThreads,
         .shared_bytes = shared},
        rounded ? norm_route_prompts_kernel<T, kSteps, true>
                : norm_route_prompts_kernel<T, kSteps, false>,
        AddedRows{.x = static_cast<const float*>(op.norm.x.data), .stride = op.norm.x.row_stride},
        norm, route_args<T>(r));
  };
  visit_dtype<f16, bf16>(op.norm.y.dtype, "MoeBlock of prompts on CUDA", [&]<class X>() {
    op.norm.y.cols <= kFewSteps* kNormThreads* kNormPack
        ? start.template operator()<device_t<X>, kFewSteps>()
        : start.template operator()<device_t<X>, kNormSteps>();
  });
}

}  // namespace ostro::cuda
