// ops::PagedAttention of prompts on CUDA with wgmma, head_dim 64 or 128. The contract is in
// ops/attention.h, rows and the order of the sums in attention_rows.cuh.
//
// Grid:     tiles of 128 rows x key heads, the longest first; one block a multiprocessor.
// Roles:    a warpgroup loads the keys and values of 64 positions a stage
//           (attention_wgmma_load.cuh): the bulk copy engine, and of an e4m3 cache this warpgroup
//           widens what has come, once for all. Two warpgroups compute, 64 rows each.
// Pipeline: as FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): the softmax of a tile runs
//           beside the product of the tile before with its values, and beside the other
//           warpgroup's products. Queries, weights and sums are in registers, those of the parts
//           before too, so shared memory serves keys and values alone.
// Traffic:  4 * head_dim bytes a position and key head for each 128 rows, from L2.
// Bound by: tensor cores.
// Floor on an H100: 4 * heads * head_dim * tokens^2 / 2 / 757e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): prompts of 512 18 us,
//           2048 102, 8192 1.29 ms (56 % of 757 TFLOP/s), on an e4m3 cache 19, 113 us, 1.44 ms (50
//           %). Without the softmax 73 %: a step of 64 positions is short beside its gaps.
#pragma once

#include <numeric>

#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/kernels/attention_wgmma_layout.cuh"
#include "backends/cuda/kernels/attention_wgmma_load.cuh"
#include "backends/cuda/kernels/attention_wgmma_values.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

// A computing warpgroup: 64 rows of a block's. V: of both operands of products. `done`: tiles of
// the rows before.
template <class T, class V, int kHead>
__device__ inline void compute_prompt_rows(const AttentionArgs& a, const BlockRows& b, int group,
                                           int done, std::uint32_t shared,
                                           const unsigned char* shared_data) {
  using L = PromptLayout<kHead>;
  const int thread = int(threadIdx.x) % 128, lane = thread % 32;
  const int group_row0 = b.row0 + 64 * group, row0 = group_row0 + 16 * (thread / 32) + lane / 4;
  const AttentionRow rows[2] = {{a, b, row0}, {a, b, row0 + 8}};
  const SeenByAll all(a, b, group_row0, 64);

  std::uint32_t q[kHead / 16][4];
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const AttentionRow& r = rows[i % 2];
      const T* const from = static_cast<const T*>(a.q) + r.token * a.q_stride +
                            std::int64_t(r.head) * kHead + 16 * k + 8 * (i / 2) + 2 * (lane % 4);
      q[k][i] = r.there ? *reinterpret_cast<const std::uint32_t*>(from) : 0;
    }

  float scale_log2[2] = {a.scale_log2, a.scale_log2};
  if constexpr (!std::is_same_v<T, V>) to_half(q, scale_log2);

  // Of this part the sums, which products add to; of the parts before joined ones.
  float sum[kHead / 2], joined[kHead / 2], s[kPositions / 2];
#pragma unroll
  for (int i = 0; i < kHead / 2; ++i) sum[i] = joined[i] = 0;
#pragma unroll
  for (int i = 0; i < kPositions / 2; ++i) s[i] = 0;
  float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};
  Softmax softmax;
  softmax.start();
  std::uint32_t weights[kPositions / 16][4];
  bool add = false;  // whether the part has sums

  const int first = b.begin / kPositions, tiles = (b.end + kPositions - 1) / kPositions - first;
  const auto start_scores = [&](int i) {
    const std::uint64_t keys = ptx::swizzled_tile(L::stage(shared, done + i));
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
      ptx::WgmmaRegisters<V, kPositions>::template run<false>(
          s, q[k], keys + (k / 4 * L::kBlockBytes >> 4) + 2 * (k % 4), k > 0);
    ptx::wgmma_commit();
  };
  const auto mask = [&](int i) {
    const int p0 = (first + i) * kPositions;
    if (p0 >= b.begin && !all.hides(p0, p0 + kPositions)) return;
#pragma unroll
    for (int n = 0; n < kPositions / 2; ++n) {
      const int p = p0 + 8 * (n / 4) + 2 * (lane % 4) + n % 2;
      if (!rows[n / 2 % 2].sees(p)) s[n] = -INFINITY;
    }
  };
  const auto take_weights = [&] {
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = rounded_pair<V>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
  };
  FiniteValues<V, kHead> values(group, shared, shared_data);
  const auto choose_values = [&](int i) {
    const int p0 = (first + i) * kPositions;
    values.choose(L::stage(shared, done + i) + L::kTileBytes, all.hides(p0, p0 + kPositions));
  };
  const auto start_sums = [&] {
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
      ptx::WgmmaRegisters<V, kHead>::template run<true>(sum, weights[k], values.chosen + 128 * k,
                                                        k > 0 || add);
    ptx::wgmma_commit();
  };
  // The sums of tile i are there; its stage may be filled again.
  const auto finish_sums = [&](int i) {
    ptx::wgmma_wait<0>();
    ptx::hold_registers(sum);
    ptx::hold_registers(weights);
    if (values.odd)
      values.add_odd(L::stage(shared, done + i) + L::kTileBytes, (first + i) * kPositions, rows,
                     sum);
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(L::empty(shared, done + i));
  };
  const auto join = [&](Softmax part) {
    part.add_up_totals();
    const Join join[2] = {{joined_most[0], part.most[0]}, {joined_most[1], part.most[1]}};
#pragma unroll
    for (int n = 0; n < kHead / 2; ++n) joined[n] = join[n / 2 % 2](joined[n], sum[n]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      joined_total[i] = join[i](joined_total[i], part.total[i]);
      joined_most[i] = join[i].most;
    }
  };

  float keep[2];
  ptx::barrier_wait(L::full(shared, done), L::parity(done));
  ptx::wgmma_fence();
  start_scores(0);
  ptx::wgmma_wait<0>();
  ptx::hold_registers(s);
  mask(0);
  softmax.step(s, scale_log2, keep);
  take_weights();
  choose_values(0);

  for (int i = 1; i < tiles; ++i) {
    ptx::barrier_wait(L::full(shared, done + i), L::parity(done + i));
    ptx::wgmma_fence();
    start_scores(i);
    start_sums();
    ptx::wgmma_wait<1>();
    ptx::hold_registers(s);
    mask(i);
    const bool part_ends = (first + i) % kPartTiles == 0;
    const Softmax part = softmax;
    if (part_ends) softmax.start();
    softmax.step(s, scale_log2, keep);
    // Each branch waits for the sums: in one block with the softmax, the compiler waits before it.
    ptx::hold_registers(s);
    if (part_ends) {
      finish_sums(i - 1);
      join(part);
    } else if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) {
      finish_sums(i - 1);
#pragma unroll
      for (int n = 0; n < kHead / 2; ++n) sum[n] *= keep[n / 2 % 2];
    } else {
      finish_sums(i - 1);
    }
    add = !part_ends;
    take_weights();
    choose_values(i);
  }
  ptx::hold_registers(sum);
  ptx::wgmma_fence();
  start_sums();
  finish_sums(tiles - 1);
  join(softmax);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows[i].there) continue;
    T* const y = static_cast<T*>(a.y) + rows[i].token * a.y_stride +
                 std::int64_t(rows[i].head) * kHead + 2 * (lane % 4);
    const float factor = __frcp_rn(joined_total[i]);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
      *reinterpret_cast<std::uint32_t*>(y + 8 * n) = rounded_pair<T>(
          __fmul_rn(joined[4 * n + 2 * i], factor), __fmul_rn(joined[4 * n + 2 * i + 1], factor));
  }
}

// T: of activations; C: of the cache, T or e4m3.
template <class T, class C, int kHead>
__global__ void __launch_bounds__(PromptLayout<kHead>::kThreads, 1)
    attention_wgmma_kernel(const AttentionArgs a, const __grid_constant__ PromptMaps maps) {
  using L = PromptLayout<kHead>;
  constexpr bool kWiden = !std::is_same_v<T, C>;
  // setmaxnreg: of the 168 that three warpgroups start with.
  constexpr int kLoadRegisters = kWiden ? 40 : 24, kComputeRegisters = kWiden ? 232 : 240;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  begin_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      ptx::barrier_init(L::full(shared, i), kWiden ? 4 : 1);  // the warps that load
      ptx::barrier_init(L::empty(shared, i), 4 * L::kGroups);
    }
    for (int i = 0; i < L::kRawStages; ++i) {
      ptx::barrier_init(L::raw_full(shared, i), 1);
      ptx::barrier_init(L::raw_empty(shared, i), 4);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  // Every second time round the blocks take theirs in reverse, so that the longest rows of one
  // round and the shortest of the next meet.
  const auto each_of_mine = [&](const auto& run) {
    const int all = a.row_tiles * a.cache.kv_heads, blocks = int(gridDim.x);
    int done = 0;
    for (int round = 0; round * blocks < all; ++round) {
      const int mine = round % 2 ? blocks - 1 - int(blockIdx.x) : int(blockIdx.x);
      const int at = round * blocks + mine;
      if (at >= all) continue;
      const BlockRows b(a, 64 * L::kGroups, at);
      if (b.begin >= b.end) continue;
      run(b, done);
      done += (b.end + kPositions - 1) / kPositions - b.begin / kPositions;
    }
  };
  const int group = int(threadIdx.x) / 128;
  if (group == L::kGroups) {
    ptx::fewer_registers<kLoadRegisters>();
    if constexpr (kWiden) {
      each_of_mine(
          [&](const BlockRows& b, int done) { load_prompt_e4m3<kHead>(a, b, maps, done, shared); });
    } else {
      if (threadIdx.x % 128 >= 32) return;
      each_of_mine([&](const BlockRows& b, int done) {
        load_prompt_boxes<kHead>(a, b, maps, done, shared);
      });
    }
  } else {
    ptx::more_registers<kComputeRegisters>();
    each_of_mine([&](const BlockRows& b, int done) {
      compute_prompt_rows<T, factor_t<T, C>, kHead>(a, b, group, done, shared, shared_data);
    });
  }
}

template <class T, class C, int kHead>
void start_attention_wgmma(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  const int box_tokens = std::gcd(args.cache.block_tokens, kPositions);
  const auto map = [&](const void* data, std::int64_t stride) {
    constexpr std::int64_t kBytes = sizeof(C);
    return swizzled_map(data, args.cache_rows, kHead * kBytes, stride * kBytes, box_tokens);
  };
  const PromptMaps maps{.k = map(args.k, args.cache.k_stride),
                        .v = map(args.v, args.cache.v_stride),
                        .box_tokens = box_tokens};
  launch(stream,
         {.blocks = blocks,
          .threads = PromptLayout<kHead>::kThreads,
          .shared_bytes = PromptLayout<kHead>::kSharedBytes},
         attention_wgmma_kernel<T, C, kHead>, args, maps);
}

template <class T, class C>
void attention_wgmma_of(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  args.head_dim == 64 ? start_attention_wgmma<T, C, 64>(stream, args, blocks)
                      : start_attention_wgmma<T, C, 128>(stream, args, blocks);
}

}  // namespace ostro::cuda
