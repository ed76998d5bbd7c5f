// ops::PagedAttention of prompts on CUDA with wgmma, head_dim 64 or 128. The contract is in
// ops/attention.h, rows and the order of the sums in attention_rows.cuh.
//
// Grid:     tiles of 128 rows x key heads, the longest first; one block a multiprocessor.
// Roles:    a warpgroup loads the keys or the values of a step a stage
//           (attention_wgmma_load.cuh): the bulk copy engine, and of an e4m3 cache this warpgroup
//           widens what has come, once for all. Two warpgroups compute, 64 rows each.
// Pipeline: as FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): the softmax of a step of 128
//           positions (of an e4m3 cache 64) runs beside the product of the step before with its
//           values, and beside the other warpgroup's products. Queries, weights and sums are in
//           registers, the sums of the parts before in shared memory.
// Traffic:  4 * head_dim bytes a position and key head for each 128 rows, from L2.
// Bound by: tensor cores.
// Floor on an H100: 4 * heads * head_dim * tokens^2 / 2 / 757e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): prompts of 512 19.1
//           us, 2048 98.5, 8192 1.17 ms (62 %); on an e4m3 cache 18.7 and 115 us, 1.50 ms. On an
//           H200 128 rows x 64 positions took 792 cycles in products alone (1032 with queries in
//           shared memory) and 548 in exponentials alone.
#pragma once

#include <numeric>

#include "backends/cuda/kernels/attention_boxes.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/kernels/attention_wgmma_layout.cuh"
#include "backends/cuda/kernels/attention_wgmma_load.cuh"
#include "backends/cuda/kernels/attention_wgmma_values.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

// A computing warpgroup: 64 rows of a block's. V: of both operands of products. `done`: steps of
// the rows before.
template <class T, class V, class L, int kHead>
__device__ inline void compute_prompt_rows(const AttentionArgs& a, const BlockRows& b, int group,
                                           int done, std::uint32_t shared,
                                           unsigned char* shared_data) {
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

  float sum[kHead / 2], s[L::kStep / 2];  // of this part, of this step
#pragma unroll
  for (int i = 0; i < kHead / 2; ++i) sum[i] = 0;
#pragma unroll
  for (int i = 0; i < L::kStep / 2; ++i) s[i] = 0;
  // Of the parts before.
  auto* const joined =
      reinterpret_cast<float4*>(shared_data + L::kJoined + group * L::kJoinedBytes) + thread;
  float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};
  bool first_part = true;
  Softmax softmax;
  softmax.start();
  std::uint32_t weights[L::kStep / 16][4];

  const int first = b.begin / L::kStep, steps = (b.end + L::kStep - 1) / L::kStep - first;
  const auto keys_of = [&](int i) { return 2 * (done + i); };
  const auto values_of = [&](int i) { return 2 * (done + i) + 1; };
  const auto wait_full = [&](int tile) {
    ptx::barrier_wait(L::Tiles::full(shared, tile), L::Tiles::parity(tile));
  };
  const auto release = [&](int tile) {
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(L::Tiles::empty(shared, tile));
  };
  const auto start_scores = [&](int i) {
    const std::uint64_t keys = ptx::swizzled_tile(L::Tiles::at(shared, keys_of(i)));
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
      ptx::WgmmaRegisters<V, L::kStep>::template run<false>(
          s, q[k], keys + (k / 4 * L::kBlockBytes >> 4) + 2 * (k % 4), k > 0);
    ptx::wgmma_commit();
  };
  const auto hides = [&](int i) {
    const int p0 = (first + i) * L::kStep;
    return p0 < b.begin || all.hides(p0, p0 + L::kStep);
  };
  // What sums are to be multiplied with before the step's first tile, and before its second.
  constexpr int kTile = kPositions / 16;  // in weights
  constexpr bool kTwoTiles = L::kStep == 2 * kPositions;
  float keep[2], keep_second[2] = {1, 1};
  const auto weigh = [&](int i) {
    if (hides(i)) {
#pragma unroll
      for (int n = 0; n < L::kStep / 2; ++n) {
        const int p = (first + i) * L::kStep + 8 * (n / 4) + 2 * (lane % 4) + n % 2;
        if (!rows[n / 2 % 2].sees(p)) s[n] = -INFINITY;
      }
    }
    using Tile = float[kPositions / 2];
    softmax.step(reinterpret_cast<Tile&>(s[0]), scale_log2, keep);
    if constexpr (kTwoTiles)
      softmax.step(reinterpret_cast<Tile&>(s[kPositions / 2]), scale_log2, keep_second);
  };
  PromptValues<V, L, kHead> values(group, shared, shared_data);
  // Of weights [kFrom, kEnd), each of 16 positions.
  const auto start_sums = [&]<int kFrom, int kEnd>() {
#pragma unroll
    for (int k = kFrom; k < kEnd; ++k)
      ptx::WgmmaRegisters<V, kHead>::template run<true>(sum, weights[k],
                                                        values.chosen + k * values.next_rows, true);
    ptx::wgmma_commit();
  };
  // The sums before are there. What happens seldom leaves zeros as weights.
  const auto take_weights = [&](int i) {
#pragma unroll
    for (int k = 0; k < L::kStep / 16; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        weights[k][j] = rounded_pair<V>(s[8 * k + 2 * j], s[8 * k + 2 * j + 1]);
    wait_full(values_of(i));
    const std::uint32_t tile = L::Tiles::at(shared, values_of(i));
    const bool grows = kTwoTiles && ptx::named_barrier_any(
                                        3 + group, 128, keep_second[0] != 1 || keep_second[1] != 1);
    values.choose(tile, hides(i));
    if (values.odd) {
      values.add(tile, weights, keep_second, sum);
      values.add_odd(tile, (first + i) * L::kStep, rows, sum);
    } else if (grows) {  // between the step's tiles the sums are multiplied
      ptx::hold_registers(sum);
      ptx::hold_registers(weights);
      ptx::wgmma_fence();
      start_sums.template operator()<0, kTile>();
      ptx::wgmma_wait<0>();
      ptx::hold_registers(sum);
      ptx::hold_registers(weights);
#pragma unroll
      for (int n = 0; n < kHead / 2; ++n) sum[n] *= keep_second[n / 2 % 2];
#pragma unroll
      for (int k = 0; k < kTile; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[k][j] = 0;
    }
  };
  // The sums of step i are there; its values' stage may be filled again.
  const auto finish_sums = [&](int i) {
    ptx::wgmma_wait<0>();
    ptx::hold_registers(sum);
    ptx::hold_registers(weights);
    release(values_of(i));
  };
  // Leaves the joined sums in `sum`, and where the next part finds them.
  const auto join = [&](Softmax part, bool last) {
    part.add_up_totals();
    const Join join[2] = {{joined_most[0], part.most[0]}, {joined_most[1], part.most[1]}};
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      float4 both = first_part ? make_float4(0, 0, 0, 0) : joined[128 * n];
      both.x = join[0](both.x, sum[4 * n]);
      both.y = join[0](both.y, sum[4 * n + 1]);
      both.z = join[1](both.z, sum[4 * n + 2]);
      both.w = join[1](both.w, sum[4 * n + 3]);
      if (!last) joined[128 * n] = both;
      sum[4 * n] = last ? both.x : 0;
      sum[4 * n + 1] = last ? both.y : 0;
      sum[4 * n + 2] = last ? both.z : 0;
      sum[4 * n + 3] = last ? both.w : 0;
    }
    first_part = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      joined_total[i] = join[i](joined_total[i], part.total[i]);
      joined_most[i] = join[i].most;
    }
  };

  wait_full(keys_of(0));
  ptx::wgmma_fence();
  start_scores(0);
  ptx::wgmma_wait<0>();
  ptx::hold_registers(s);
  release(keys_of(0));
  weigh(0);
  take_weights(0);

  for (int i = 1; i < steps; ++i) {
    wait_full(keys_of(i));
    ptx::wgmma_fence();
    start_scores(i);
    start_sums.template operator()<0, L::kStep / 16>();
    ptx::wgmma_wait<1>();
    ptx::hold_registers(s);
    release(keys_of(i));
    const bool part_ends = (first + i) % (kSplitTokens / L::kStep) == 0;
    const Softmax part = softmax;
    if (part_ends) softmax.start();
    weigh(i);
    // Each branch waits for the sums: in one block with the softmax, the compiler waits before it.
    ptx::hold_registers(s);
    if (part_ends) {
      finish_sums(i - 1);
      join(part, false);
    } else if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) {
      finish_sums(i - 1);
#pragma unroll
      for (int n = 0; n < kHead / 2; ++n) sum[n] *= keep[n / 2 % 2];
    } else {
      finish_sums(i - 1);
    }
    take_weights(i);
  }
  ptx::hold_registers(sum);
  ptx::wgmma_fence();
  start_sums.template operator()<0, L::kStep / 16>();
  finish_sums(steps - 1);
  join(softmax, true);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows[i].there) continue;
    T* const y = static_cast<T*>(a.y) + rows[i].token * a.y_stride +
                 std::int64_t(rows[i].head) * kHead + 2 * (lane % 4);
    const float factor = __frcp_rn(joined_total[i]);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
      *reinterpret_cast<std::uint32_t*>(y + 8 * n) = rounded_pair<T>(
          __fmul_rn(sum[4 * n + 2 * i], factor), __fmul_rn(sum[4 * n + 2 * i + 1], factor));
  }
}

// T: of activations; C: of the cache, T or e4m3.
template <class T, class C, int kHead>
__global__ void __launch_bounds__(384, 1)
    attention_wgmma_kernel(const AttentionArgs a, const __grid_constant__ CacheMaps maps) {
  constexpr bool kWiden = !std::is_same_v<T, C>;
  using L = PromptLayout<kHead, kWiden>;
  // setmaxnreg: of the 168 that three warpgroups start with.
  constexpr int kLoadRegisters = kWiden ? 40 : 24, kComputeRegisters = kWiden ? 232 : 240;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  begin_kernel();
  if (threadIdx.x == 0) {
    L::Tiles::init(shared, kWiden ? 4 : 1, 4 * L::kGroups);  // the warps that load and compute
    if (kWiden) L::Raw::init(shared, 1, 4);
    ptx::barrier_init_fence();
  }
  if (threadIdx.x < 64) {
    ptx::store16(shared + L::kZeros + threadIdx.x * 16, make_uint4(0, 0, 0, 0));
    ptx::fence_async_proxy();
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
      done += (b.end + L::kStep - 1) / L::kStep - b.begin / L::kStep;
    }
  };
  const int group = int(threadIdx.x) / 128;
  if (group == L::kGroups) {
    ptx::fewer_registers<kLoadRegisters>();
    if constexpr (kWiden) {
      each_of_mine([&](const BlockRows& b, int done) {
        load_prompt_e4m3<L, kHead>(a, b, maps, done, shared);
      });
    } else {
      if (threadIdx.x % 128 >= 32) return;
      each_of_mine(
          [&](const BlockRows& b, int done) { load_prompt_boxes<L>(a, b, maps, done, shared); });
    }
  } else {
    ptx::more_registers<kComputeRegisters>();
    each_of_mine([&](const BlockRows& b, int done) {
      compute_prompt_rows<T, factor_t<T, C>, L, kHead>(a, b, group, done, shared, shared_data);
    });
  }
}

template <class T, class C, int kHead>
void start_attention_wgmma(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  const int box_tokens = std::gcd(args.cache.block_tokens, kPositions);
  const CacheMaps maps = cache_maps<C, kHead>(args, box_tokens);
  using L = PromptLayout<kHead, !std::is_same_v<T, C>>;
  launch(stream, {.blocks = blocks, .threads = L::kThreads, .shared_bytes = L::kSharedBytes},
         attention_wgmma_kernel<T, C, kHead>, args, maps);
}

template <class T, class C>
void attention_wgmma_of(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  args.head_dim == 64 ? start_attention_wgmma<T, C, 64>(stream, args, blocks)
                      : start_attention_wgmma<T, C, 128>(stream, args, blocks);
}

}  // namespace ostro::cuda
