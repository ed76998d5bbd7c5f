// ops::MoeBlock on CUDA, but for its products. The contract is in ops/moe_block.h. Of more than 256
// tokens norm_route_prompts.cu has what stands before them.
//
// Before:   one block of 8 warps for each token: adds and normalises its row (norm.cuh), keeps it
//           in shared memory, and sums the router's logits from there, warp w those of experts w,
//           w + 8, ... The router's rows come to registers before the predecessor has ended. The
//           block that finishes last, by a counter, numbers the slots of all tokens (moe.cuh): what
//           it numbers does not depend on which block that is.
// After:    the weighted sum of a token's experts is what its row of the norm adds.
// Order:    of every sum as in the kernels of the four operations, whose bits these are.
// Traffic:  as norm.cu, and the router from L2 for each token; after, top_k rows of f32 instead of
//           the one that they would sum to.
// Bound by: latency: launches, of which a layer has three less.
// Measured (H200, cuda_kernels_bench f8e4m3, from one norm to the next; the four operations one by
//           one): 106 us at 1 token (117), 414 at 64 (422); with a limit above today's 616 at
//           512 (643).
#include "backends/cuda/kernels/moe.cuh"
#include "backends/cuda/kernels/moe_block.h"
#include "backends/cuda/kernels/norm.cuh"
#include "backends/cuda/kernels/route.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/atomic.cuh"

namespace ostro::cuda {
namespace {

constexpr int kWarps = kNormThreads / 32;
constexpr int kRoutePack = 8;       // as route.cu's
constexpr int kRouterKept = 16;     // packs of a lane: 4096 columns in 64 registers
constexpr int kMostGrouped = 1024;  // choices that the last block numbers

struct GroupArgs {
  WeightTable<kFewExperts, true> table;
  ExpertGroups out;
  unsigned* finished;
  int first_expert, experts, tile;
  bool here;  // else group_by_expert() does it
};

// The logits of a token whose row is in shared memory. `own` are the first columns of expert
// `warp`.
template <class T>
__device__ void sum_logits(const T* row, int hidden, const RouteArgs<T>& a,
                           const Pack<T, kRoutePack> (&own)[kRouterKept],
                           RouteShared<kFewExperts>& shared) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int first = lane * kRoutePack;
  constexpr int kStride = 32 * kRoutePack;
#pragma unroll 1
  for (int e = warp; e < a.experts; e += kWarps) {
    const T* const router = a.router + e * a.router_stride;
    float sum = 0;
    int i = first;
    if (e == warp) {
#pragma unroll
      for (int k = 0; k < kRouterKept; ++k)
        if (first + k * kStride < hidden)
          sum = dot(load_pack<kRoutePack>(row + first + k * kStride), own[k], sum);
      i += kRouterKept * kStride;
    }
#pragma unroll 1
    for (; i < hidden; i += kStride)
      sum = dot(load_pack<kRoutePack>(row + i), load_pack<kRoutePack>(router + i), sum);
    sum = warp_sum(sum);
    if (lane == 0) shared.set(e, sum);
  }
}

// True in the block that is the last of the grid to call it, whose threads then see what the first
// warps of the others had written. All blocks call it once.
__device__ bool is_last_block(unsigned* finished) {
  __shared__ bool last;
  __syncwarp();
  if (threadIdx.x == 0) last = ptx::count_round(finished, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  return last;
}

template <class T, int kSteps, bool kRound>
__global__ void __launch_bounds__(kNormThreads)
    norm_route_kernel(AddedRows added, const NormArgs<T, T> norm, const RouteArgs<T> route,
                      const __grid_constant__ GroupArgs group) {
  using Row = NormRow<T, kNormPack, kSteps>;
  __shared__ __align__(16) T row_shared[Row::kKept];
  __shared__ RouteShared<kFewExperts> shared;
  __shared__ std::int32_t expert_of[kMostGrouped], start[kFewExperts + 1];
  const std::int64_t t = blockIdx.x;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  Row row(norm.weight, norm.hidden);
  Pack<T, kRoutePack> own[kRouterKept];
#pragma unroll
  for (int k = 0; k < kRouterKept; ++k)
    if (const int i = (k * 32 + lane) * kRoutePack; warp < route.experts && i < norm.hidden)
      own[k] = load_pack<kRoutePack>(route.router + warp * route.router_stride + i);
  begin_kernel();

  const bool live = !route.live || t < *route.live;
  const float sum = row.add(added, t, norm.residual + t * norm.residual_stride);
  const float scale = norm_scale(norm_block_sum(sum), norm.hidden, norm.eps);
  T* const y = norm.y + t * norm.y_stride;
  row.each([&](int s, int i) {
    const auto out = Row::template normalised<T>(row.weight[s], row.kept[s], scale);
    store_pack(y + i, out);
    store_pack(row_shared + i, out);
  });
  float most = 0;
  if constexpr (kRound)
    most = block_max<kNormThreads>(row.most_kept());  // waits for the block, as below
  else
    __syncthreads();
  if (live) sum_logits(row_shared, norm.hidden, route, own, shared);
  __syncthreads();

  const bool alone = gridDim.x == 1;  // then the choices need not come back from memory
  if (warp == 0) {
    const RouteRow to{route.chosen + t * route.chosen_stride,
                      route.weights + t * route.weights_stride, route.counts};
    if (alone) expert_of[lane] = -1;
    __syncwarp();
    if (live)
      choose_experts(shared, route.experts, route.top_k, route.renormalize, to, [&](int j, int e) {
        if (alone) expert_of[j] = e - group.first_expert;
      });
    else
      choose_none(route.top_k, to, lane, 32);
  }
  if constexpr (kRound) {
    if (threadIdx.x == 0) norm.rounded.scale[t] = e4m3_scale(most);
    row.round(norm.rounded.data + t * norm.rounded.stride, e4m3_factor(most));
  }
  if (!group.here || !(alone || is_last_block(group.finished))) return;

  const int choices = int(gridDim.x) * route.top_k;
  group.table.copy_to(group.out, group.experts, int(threadIdx.x), kNormThreads);
#pragma unroll 4
  for (int i = int(threadIdx.x); i < choices && !alone; i += kNormThreads)
    expert_of[i] = __ldcg(route.chosen + i / route.top_k * route.chosen_stride + i % route.top_k) -
                   group.first_expert;
  __syncthreads();
  group_choices<kNormThreads>(choices, route.top_k, group.experts, group.tile, start, group.out,
                              [&](int i) { return expert_of[i]; });
}

// The weighted sum of a token's experts as a norm's addend, in combine_experts()' order. kTopK 0:
// any number of choices.
template <int kTopK>
struct AddedExperts {
  static constexpr bool kShortRows = true;
  const std::int32_t* slot_of;
  const float* weights;
  std::int64_t weights_stride;
  const float* out;
  int top_k;
  std::int32_t slots[kTopK + 1];
  float factors[kTopK + 1];

  __device__ bool any() const { return true; }
  // The kernels before the last two, whose the choices are, have ended: each admits its successor
  // after it has waited itself.
  __device__ void find(std::int64_t t) {
#pragma unroll
    for (int j = 0; j < kTopK; ++j) {
      slots[j] = slot_of[t * kTopK + j];
      factors[j] = weights[t * weights_stride + j];
    }
  }
  template <int kPack, int kSteps>
  using Packs = Pack<float, kPack>[kSteps];

  template <int kPack, int kSteps>
  __device__ void load_slot(std::int64_t slot, int first, int hidden,
                            Packs<kPack, kSteps>& part) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (const int i = first + s * kNormThreads * kPack; i < hidden)
        part[s] = load_pack<kPack>(out + slot * hidden + i);
  }
  template <int kPack, int kSteps>
  __device__ static void add(float factor, const Packs<kPack, kSteps>& part, int first, int hidden,
                             Packs<kPack, kSteps>& sum) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kNormThreads * kPack < hidden) {
#pragma unroll
        for (int p = 0; p < kPack; ++p) sum[s].v[p] = fmaf(factor, part[s].v[p], sum[s].v[p]);
      }
  }
  template <int kPack, int kSteps>
  __device__ void load(std::int64_t t, int first, int hidden,
                       Pack<float, kPack> (&sum)[kSteps]) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) sum[s] = {};
    if constexpr (kTopK > 0) {
      Packs<kPack, kSteps> parts[kTopK];
#pragma unroll
      for (int j = 0; j < kTopK; ++j)
        if (slots[j] >= 0) load_slot<kPack, kSteps>(slots[j], first, hidden, parts[j]);
#pragma unroll
      for (int j = 0; j < kTopK; ++j)
        if (slots[j] >= 0) add<kPack, kSteps>(factors[j], parts[j], first, hidden, sum);
    } else {
      for (int j = 0; j < top_k; ++j) {
        const std::int64_t slot = slot_of[t * top_k + j];
        if (slot < 0) continue;
        Packs<kPack, kSteps> part;
        load_slot<kPack, kSteps>(slot, first, hidden, part);
        add<kPack, kSteps>(weights[t * weights_stride + j], part, first, hidden, sum);
      }
    }
  }
};

bool norm_takes(const ops::AddRmsNorm& op, DType type) {
  return norm_in_packs(op) && op.residual.cols <= NormRow<float, kNormPack, kNormSteps>::kKept &&
         (!op.y || (op.y.dtype == type && op.weight.dtype == type));
}

// Fewer registers for rows of Mixtral 8x7B, so that a block leaves room for its neighbours in time.
constexpr int kFewSteps = 4;
template <class Visit>
void visit_type(const ops::MoeBlock& op, Visit&& visit) {
  visit_dtype<f16, bf16>(op.norm.y.dtype, "MoeBlock on CUDA", [&]<class X>() {
    op.norm.y.cols <= kFewSteps* kNormThreads* kNormPack
        ? visit.template operator()<device_t<X>, kFewSteps>()
        : visit.template operator()<device_t<X>, kNormSteps>();
  });
}

}  // namespace

bool moe_block_takes(const ops::MoeBlock& op) {
  const View& x = op.norm.y;
  const View& router = op.route.router.data;
  return 0 < x.rows && (x.dtype == DType::f16 || x.dtype == DType::bf16) &&
         x.cols % kRoutePack == 0 && norm_takes(op.norm, x.dtype) && norm_takes(op.next, x.dtype) &&
         router.dtype == x.dtype && router.rows <= kFewExperts && rows_aligned(router, 16) &&
         0 < op.mlp.local.size() && op.mlp.local.size() <= std::size_t(kFewExperts);
}

void norm_route(cudaStream_t stream, const ops::MoeBlock& op, const E4m3Rows* rounded,
                int token_tile, const ExpertGroups& groups, unsigned* finished) {
  const ops::Route& r = op.route;
  const std::int64_t tokens = r.x.rows;
  const GroupArgs group{.table = WeightTable<kFewExperts, true>(op.mlp.local),
                        .out = groups,
                        .finished = finished,
                        .first_expert = int(op.mlp.first_expert),
                        .experts = int(op.mlp.local.size()),
                        .tile = token_tile,
                        .here = tokens * r.experts.cols <= kMostGrouped};
  visit_type(op, [&]<class T, int kSteps>() {
    launch(
        stream, {.blocks = tokens, .threads = kNormThreads},
        rounded ? norm_route_kernel<T, kSteps, true> : norm_route_kernel<T, kSteps, false>,
        AddedRows{.x = static_cast<const float*>(op.norm.x.data), .stride = op.norm.x.row_stride},
        norm_args<T, T>(op.norm, rounded), route_args<T>(r), group);
  });
  if (!group.here) group_by_expert(stream, op.mlp, token_tile, groups);
}

void combine_norm(cudaStream_t stream, const ops::MoeBlock& op, const ExpertSums& sums,
                  const E4m3Rows* rounded) {
  visit_type(op, [&]<class T, int kSteps>() {
    const auto start = [&]<int kTopK>() {
      const AddedExperts<kTopK> added{.slot_of = sums.slot_of,
                                      .weights = static_cast<const float*>(op.mlp.weights.data),
                                      .weights_stride = op.mlp.weights.row_stride,
                                      .out = sums.out,
                                      .top_k = int(op.mlp.experts.cols),
                                      .slots = {},
                                      .factors = {}};
      launch(stream, {.blocks = op.next.residual.rows, .threads = kNormThreads},
             rounded ? add_rms_norm_kernel<AddedExperts<kTopK>, T, T, kNormPack, kSteps, true>
                     : add_rms_norm_kernel<AddedExperts<kTopK>, T, T, kNormPack, kSteps, false>,
             added, norm_args<T, T>(op.next, rounded));
    };
    constexpr int kMixtral = 2;
    op.mlp.experts.cols == kMixtral ? start.template operator()<kMixtral>()
                                    : start.template operator()<0>();
  });
}

}  // namespace ostro::cuda
