// ops::PagedAttention of prompts on CUDA with wgmma, head_dim 64 or 128. The contract is in
// ops/attention.h, rows and the order of the sums in attention_rows.cuh.
//
// Grid:     tiles of 128 rows x key heads, the longest first; one block a multiprocessor.
// Roles:    a warpgroup loads: 16-byte cp.async of the keys and values of 64 positions a stage, or
//           loads of e4m3 that it widens; stages are handed over by mbarriers. Two warpgroups
//           compute, 64 rows each.
// Pipeline: as FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): the softmax of a tile runs
//           beside the product of the tile before with its values, and beside the other
//           warpgroup's products. Queries, weights and sums are in registers, so shared memory
//           serves keys and values alone.
// Traffic:  4 * head_dim bytes a position and key head for each 128 rows, from L2.
// Bound by: tensor cores.
// Floor on an H100: 4 * heads * head_dim * tokens^2 / 2 / 757e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): prompts of 512 20 us
//           (14 %), 2048 124 us (37 %), 8192 1.53 ms (48 %); on an e4m3 cache 24, 162 us, 2.14 ms.
//           Letting the warpgroups take turns with the tensor core made it 3 % slower.
#pragma once

#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

template <int kHead>
struct PromptLayout {
  static constexpr int kGroups = 2;  // warpgroups that compute
  static constexpr int kStages = 4;
  static constexpr int kLoading = 2;  // stages under way at once
  static_assert(kLoading <= kStages - 1, "those that compute hold two, and wait for the next");
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kBlockBytes = kPositions * 128;       // 64 columns: a swizzled tile
  static constexpr int kTileBytes = kPositions * kHead * 2;  // keys or values
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kCopies = kStages * kStageBytes;  // of values that are finite, a group
  static constexpr int kJoinedBytes = 64 * kHead * 4;    // sums of the parts before, a group
  static constexpr int kJoined = kCopies + kGroups * kTileBytes;
  static constexpr int kBarriers = kJoined + kGroups * kJoinedBytes;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * 8 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // setmaxnreg: of the 168 that three warpgroups start with.
  static constexpr int kLoadRegisters = 40, kComputeRegisters = 232;

  // Where chunk c (16 bytes) of position p stands in a tile.
  __device__ static std::uint32_t at(int p, int c) {
    return c / 8 * kBlockBytes + p * 128 + ((c % 8 ^ p % 8) << 4);
  }
};

// The loading warpgroup: tiles of [begin, end) into the stages, in order.
template <class T, class C, int kHead>
__device__ inline void load_prompt_tiles(const AttentionArgs& a, const BlockRows& b,
                                         std::uint32_t shared) {
  using L = PromptLayout<kHead>;
  constexpr bool kWiden = !std::is_same_v<T, C>;
  constexpr int kElements = 16 / sizeof(C);     // of 16 bytes
  constexpr int kChunks = kHead / kElements;    // of a position
  constexpr int kWarpPositions = 32 / kChunks;  // that a warp loads at once
  constexpr int kLoads = kPositions / (4 * kWarpPositions);
  const int thread = int(threadIdx.x) % 128, lane = thread % 32, warp = thread / 32;
  const int first = b.begin / kPositions, tiles = (b.end + kPositions - 1) / kPositions - first;
  const auto position_of = [&](int load, int in_warp) {
    return kWarpPositions * (4 * load + warp) + in_warp;
  };
  // The cache rows that this warp loads of a tile, one in a lane; -1: zeros.
  const auto find = [&](int tile) {
    const int p =
        (first + tile) * kPositions + position_of(lane / kWarpPositions, lane % kWarpPositions);
    return lane < kLoads * kWarpPositions && b.begin <= p && p < b.end
               ? std::int32_t(a.cache.row(b.blocks, b.kv_head, p))
               : -1;
  };
  const int chunk = lane % kChunks;
  const auto fill = [&]<class Wide>(std::uint32_t to, const void* from, std::int64_t stride,
                                    int found, Wide) {
    const auto row_of = [&](int load) {
      return __shfl_sync(~0u, found, kWarpPositions * load + lane / kChunks);
    };
    const auto source = [&](int row) {
      return static_cast<const C*>(from) + (row >= 0 ? row * stride : 0) + chunk * kElements;
    };
    const auto to_of = [&](int load, int wide_chunk) {
      return to + L::at(position_of(load, lane / kChunks), wide_chunk);
    };
    if constexpr (!kWiden) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int row = row_of(i);
        ptx::copy16(to_of(i, chunk), source(row), row >= 0 ? 16 : 0);
      }
    } else {
      uint4 loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int row = row_of(i);
        loaded[i] = row >= 0 ? *reinterpret_cast<const uint4*>(source(row)) : uint4{};
      }
      const auto store_eight = [&](int load, int wide_chunk, std::uint32_t x, std::uint32_t y) {
        ptx::store16(to_of(load, wide_chunk),
                     make_uint4(widen_e4m3<Wide>(x & 0xffff), widen_e4m3<Wide>(x >> 16),
                                widen_e4m3<Wide>(y & 0xffff), widen_e4m3<Wide>(y >> 16)));
      };
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        store_eight(i, 2 * chunk, loaded[i].x, loaded[i].y);
        store_eight(i, 2 * chunk + 1, loaded[i].z, loaded[i].w);
      }
    }
  };
  const auto full = [&](int i) { return shared + L::kBarriers + i % L::kStages * 8; };
  const auto empty = [&](int i) { return full(i) + L::kStages * 8; };
  // The oldest of the stages under way is there: all of this warp's, for wgmma too.
  const auto hand_over = [&](int i) {
    ptx::copy_wait<L::kLoading - 1>();
    ptx::fence_async_proxy();
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(full(i));
  };
  int found = find(0);
  for (int i = 0; i < tiles + L::kLoading - 1; ++i) {
    if (i < tiles) {
      const int next = i + 1 < tiles ? find(i + 1) : -1;
      ptx::barrier_wait(empty(i), (i / L::kStages & 1) ^ 1);
      const std::uint32_t to = shared + i % L::kStages * L::kStageBytes;
      fill(to, a.k, a.cache.k_stride, found, T{});
      fill(to + L::kTileBytes, a.v, a.cache.v_stride, found, weight_t<T, C>{});
      found = next;
    }
    ptx::copy_commit();
    if (i >= L::kLoading - 1) hand_over(i - (L::kLoading - 1));
  }
}

// A computing warpgroup: 64 rows. V: of weights and values.
template <class T, class V, int kHead, bool kInTurns>
__device__ inline void compute_prompt_rows(const AttentionArgs& a, const BlockRows& b, int group,
                                           std::uint32_t shared, unsigned char* shared_data) {
  using L = PromptLayout<kHead>;
  const int thread = int(threadIdx.x) % 128, lane = thread % 32, warp = thread / 32;
  const int group_row0 = b.row0 + 64 * group;
  const AttentionRow rows[2] = {{a, b, group_row0 + 16 * warp + lane / 4},
                                {a, b, group_row0 + 16 * warp + lane / 4 + 8}};
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

  const int first = b.begin / kPositions, tiles = (b.end + kPositions - 1) / kPositions - first;
  const auto full = [&](int i) { return shared + L::kBarriers + i % L::kStages * 8; };
  const auto empty = [&](int i) { return full(i) + L::kStages * 8; };
  const auto keys_of = [&](int i) { return shared + i % L::kStages * L::kStageBytes; };
  // Barriers 1 and 2: turns of the two groups to start products. 3 and 4: within a group.
  const int turn = 1 + group, other_turn = 2 - group, own = 3 + group;

  float sum[kHead / 2], s[kPositions / 2];
#pragma unroll
  for (int i = 0; i < kHead / 2; ++i) sum[i] = 0;
#pragma unroll
  for (int i = 0; i < kPositions / 2; ++i) s[i] = 0;
  std::uint32_t weights[kPositions / 16][4];
  std::uint64_t values = 0;
  bool odd = false, add = false;
  Softmax softmax;
  softmax.start();
  float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};

  const auto start_scores = [&](int i) {
    const std::uint64_t keys = ptx::swizzled_tile(keys_of(i));
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k)
      ptx::WgmmaRegisters<T, kPositions>::template run<false>(
          s, q[k], keys + (k / 4 * L::kBlockBytes >> 4) + 2 * (k % 4), k > 0);
    ptx::wgmma_commit();
  };
  const auto start_sums = [&] {
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
      ptx::WgmmaRegisters<V, kHead>::template run<true>(sum, weights[k], values + 128 * k,
                                                        k > 0 || add);
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
  // A weight of 0 does not keep NaN and infinity out of a sum. If the tile holds such values at a
  // position that some row does not see, a copy of it with zeros instead is multiplied, and the
  // rows that do see them get their NaN afterwards.
  const auto choose_values = [&](int i) {
    const std::uint32_t from = keys_of(i) + L::kTileBytes;
    values = ptx::swizzled_transposed(from, L::kBlockBytes);
    const int p0 = (first + i) * kPositions;
    odd = false;
    if (!all.hides(max(b.begin, p0), min(b.end, p0 + kPositions))) return;
    const auto* const words = reinterpret_cast<const uint4*>(shared_data + (from - shared));
    constexpr int kEach = L::kTileBytes / 16 / 128;
    std::uint32_t found = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const uint4 w = words[thread + 128 * j];
      found |= Bits<V>::not_finite(w.x) | Bits<V>::not_finite(w.y) | Bits<V>::not_finite(w.z) |
               Bits<V>::not_finite(w.w);
    }
    odd = ptx::named_barrier_any(own, 128, found != 0);
    if (!odd) return;
    const std::uint32_t to = shared + L::kCopies + group * L::kTileBytes;
#pragma unroll 1
    for (int j = 0; j < kEach; ++j) {
      const uint4 w = words[thread + 128 * j];
      const auto finite = [](std::uint32_t x) { return x & ~Bits<V>::not_finite(x); };
      ptx::store16(to + (thread + 128 * j) * 16,
                   make_uint4(finite(w.x), finite(w.y), finite(w.z), finite(w.w)));
    }
    ptx::fence_async_proxy();
    ptx::named_barrier_sync(own, 128);
    values = ptx::swizzled_transposed(to, L::kBlockBytes);
  };
  const auto add_odd = [&](int i) {
    const unsigned char* const tile = shared_data + (keys_of(i) - shared) + L::kTileBytes;
    std::uint32_t columns[2] = {};  // of sum, a bit each
#pragma unroll 1
    for (int at = 0; at < kPositions * kHead / 8; ++at) {
      const int p = at % kPositions, n = at / kPositions;
      const std::uint32_t bad = Bits<V>::not_finite(
          *reinterpret_cast<const std::uint32_t*>(tile + L::at(p, n) + 4 * (lane % 4)));
      const std::uint32_t two = (bad & 1) | (bad >> 16 & 1) << 1;
      const std::uint32_t four = (rows[0].sees((first + i) * kPositions + p) ? two : 0) |
                                 (rows[1].sees((first + i) * kPositions + p) ? two << 2 : 0);
      columns[0] |= n < 8 ? four << 4 * n : 0;
      columns[1] |= n < 8 ? 0 : four << 4 * (n - 8);
    }
#pragma unroll
    for (int n = 0; n < kHead / 2; ++n)
      if (columns[n / 32] >> n % 32 & 1) sum[n] = NAN;
  };
  // The sums of the parts before wait in shared memory, each thread's own; the last stay in sum.
  auto* const joined =
      reinterpret_cast<Pack<float, 4>*>(shared_data + L::kJoined + group * L::kJoinedBytes) +
      thread;
  bool first_part = true;
  const auto join = [&](const Softmax& part, bool last) {
    const Join join[2] = {{joined_most[0], part.most[0]}, {joined_most[1], part.most[1]}};
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      Pack<float, 4> both = first_part ? Pack<float, 4>{} : joined[128 * n];
#pragma unroll
      for (int i = 0; i < 4; ++i) both.v[i] = join[i / 2](both.v[i], sum[4 * n + i]);
      if (!last) joined[128 * n] = both;
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[4 * n + i] = both.v[i];
    }
    first_part = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      joined_total[i] = join[i](joined_total[i], part.total[i]);
      joined_most[i] = join[i].most;
    }
  };
  const auto take_weights = [&] {
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = rounded_pair<V>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
  };
  const auto release = [&](int i) {
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(empty(i));
  };

  float keep[2];
  if (kInTurns && group == 1) ptx::named_barrier_arrive(other_turn, 256);
  ptx::barrier_wait(full(0), 0);
  if (kInTurns) ptx::named_barrier_sync(turn, 256);
  ptx::wgmma_fence();
  start_scores(0);
  if (kInTurns && (group == 0 || tiles > 1)) ptx::named_barrier_arrive(other_turn, 256);
  ptx::wgmma_wait<0>();
  ptx::hold_registers(s);
  mask(0);
  softmax.step(s, a.scale_log2, keep);
  take_weights();
  choose_values(0);

  for (int i = 1; i < tiles; ++i) {
    ptx::barrier_wait(full(i), i / L::kStages & 1);
    if (kInTurns) ptx::named_barrier_sync(turn, 256);
    ptx::wgmma_fence();
    start_scores(i);
    start_sums();
    if (kInTurns && (group == 0 || i + 1 < tiles)) ptx::named_barrier_arrive(other_turn, 256);
    ptx::wgmma_wait<1>();
    ptx::hold_registers(s);
    mask(i);
    const bool part_ends = (first + i) % kPartTiles == 0;
    Softmax part = softmax;
    if (part_ends) softmax.start();
    softmax.step(s, a.scale_log2, keep);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(sum);
    ptx::hold_registers(weights);
    if (odd) add_odd(i - 1);
    release(i - 1);
    add = !part_ends;
    if (part_ends) {
      part.add_up_totals();
      join(part, false);
    } else if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kHead / 2; ++n) sum[n] *= keep[n / 2 % 2];
    }
    take_weights();
    choose_values(i);
  }
  ptx::hold_registers(sum);
  ptx::wgmma_fence();
  start_sums();
  ptx::wgmma_wait<0>();
  ptx::hold_registers(sum);
  ptx::hold_registers(weights);
  if (odd) add_odd(tiles - 1);
  softmax.add_up_totals();
  join(softmax, true);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows[i].there) continue;
    T* const y = static_cast<T*>(a.y) + rows[i].token * a.y_stride +
                 std::int64_t(rows[i].head) * kHead + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
      *reinterpret_cast<std::uint32_t*>(y + 8 * n) =
          rounded_pair<T>(__fdiv_rn(sum[4 * n + 2 * i], joined_total[i]),
                          __fdiv_rn(sum[4 * n + 2 * i + 1], joined_total[i]));
  }
}

// T: of activations; C: of the cache, T or e4m3.
template <class T, class C, int kHead, bool kInTurns>
__global__ void __launch_bounds__(PromptLayout<kHead>::kThreads, 1)
    attention_wgmma_kernel(const AttentionArgs a) {
  using L = PromptLayout<kHead>;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  begin_kernel();
  const BlockRows b(a, 64 * L::kGroups);
  if (b.begin >= b.end) return;
  if (threadIdx.x == 0)
    for (int i = 0; i < L::kStages; ++i) {
      ptx::barrier_init(shared + L::kBarriers + 8 * i, 4);  // the warps that load
      ptx::barrier_init(shared + L::kBarriers + 8 * (L::kStages + i), 4 * L::kGroups);
    }
  __syncthreads();
  const int group = int(threadIdx.x) / 128;
  if (group == L::kGroups) {
    ptx::fewer_registers<L::kLoadRegisters>();
    load_prompt_tiles<T, C, kHead>(a, b, shared);
  } else {
    ptx::more_registers<L::kComputeRegisters>();
    compute_prompt_rows<T, weight_t<T, C>, kHead, kInTurns>(a, b, group, shared, shared_data);
  }
}

template <class T, class C, int kHead, bool kInTurns>
void start_attention_wgmma(cudaStream_t stream, const AttentionArgs& args) {
  launch(stream,
         {.blocks = std::int64_t(args.row_tiles) * args.cache.kv_heads,
          .threads = PromptLayout<kHead>::kThreads,
          .shared_bytes = PromptLayout<kHead>::kSharedBytes},
         attention_wgmma_kernel<T, C, kHead, kInTurns>, args);
}

// Whether the two groups take turns to start their products.
constexpr bool kTurns = false;

template <class T, class C>
void attention_wgmma_of(cudaStream_t stream, const AttentionArgs& args) {
  args.head_dim == 64 ? start_attention_wgmma<T, C, 64, kTurns>(stream, args)
                      : start_attention_wgmma<T, C, 128, kTurns>(stream, args);
}

}  // namespace ostro::cuda
