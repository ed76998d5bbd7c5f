// The slots of experts, numbered by one block: for the kernels that know the choices.
#pragma once

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/moe.h"

namespace ostro::cuda {

constexpr int kFewExperts = 32;  // 1.6 KB of launch parameters at most, instead of 31

// Where the experts' weights lie, by value: launch parameters hold 32 KB at most.
template <int kExperts, bool kScales>
struct WeightTable {
  explicit WeightTable(std::span<const ops::Expert> experts) : gate{}, up{}, down{} {
    for (std::size_t e = 0; e < experts.size(); ++e) {
      gate.set(e, experts[e].gate);
      up.set(e, experts[e].up);
      down.set(e, experts[e].down);
    }
  }
  // By one of `threads` threads.
  __device__ void copy_to(const ExpertGroups& out, int experts, int thread, int threads) const {
#pragma unroll 1
    for (int e = thread; e < experts; e += threads) {
      out.gate[e] = gate.of(e);
      out.up[e] = up.of(e);
      out.down[e] = down.of(e);
    }
  }

  struct Matrices {
    const void* data[kExperts];
    const float* scale[kScales ? kExperts : 1];
    std::int64_t stride;

    void set(std::size_t e, const quant::Weight& w) {
      data[e] = w.data.data;
      stride = w.data.row_stride;
      if constexpr (kScales) scale[e] = static_cast<const float*>(w.scale.data);
    }
    __device__ WeightRef of(int e) const {
      return {data[e], stride, kScales ? scale[kScales ? e : 0] : nullptr};
    }
  } gate, up, down;
};
static_assert(sizeof(WeightTable<kMostExperts, false>) < 32000);
static_assert(sizeof(WeightTable<kMostE4m3Experts, true>) < 32000);

// x of the lanes before this one, added up.
__device__ inline int sum_before(int x) {
  const int lane = int(threadIdx.x) % 32;
  int sum = x;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  return sum - x;
}

// start[e + 1] holds the choices of expert e, and then where its slots end; the tiles of its slots
// go to `out`, small ones behind the others. By one warp.
__device__ inline void place_tiles(int experts, int tile, std::int32_t* start,
                                   const ExpertGroups& out) {
  const int lane = int(threadIdx.x) % 32;
  // Of an expert's tiles only the last can be small.
  const auto ends_small = [tile](int count) {
    return tile > kSmallTile && count > 0 && (count - 1) % tile < kSmallTile;
  };
  int slots = 0, tiles = 0;
#pragma unroll 1
  for (int base = 0; base < experts; base += 32) {
    const int e = base + lane;
    const int count = e < experts ? start[e + 1] : 0;
    const int large = (count + tile - 1) / tile - ends_small(count);
    const int first = slots + sum_before(count), first_tile = tiles + sum_before(large);
#pragma unroll 1
    for (int i = 0; i < large; ++i)
      out.tiles[first_tile + i] = {e, first + i * tile, min(tile, count - i * tile)};
    if (e < experts) start[e + 1] = first + count;
    slots = __shfl_sync(~0u, first + count, 31);
    tiles = __shfl_sync(~0u, first_tile + large, 31);
  }
  if (lane == 0) {
    start[0] = 0;
    out.tile_count[1] = tiles;
  }
  __syncwarp();
#pragma unroll 1
  for (int base = 0; base < experts; base += 32) {
    const int e = base + lane;
    const int count = e < experts ? start[e + 1] - start[e] : 0;
    const bool small = ends_small(count);
    const int at = tiles + sum_before(small);
    if (small) {
      const int rest = (count - 1) % tile + 1;
      out.tiles[at] = {e, start[e + 1] - rest, rest};
    }
    tiles = __shfl_sync(~0u, at + small, 31);
  }
  if (lane == 0) out.tile_count[0] = tiles;
}

// Numbers the slots of `choices` choices, top_k a token, by a block of kThreads threads: a warp for
// each expert walks them twice, counting and then numbering its own by ballots. expert_at(i) is
// the local expert of choice i, out of range where it has none, read from shared memory (choices in
// memory are walked in moe.cu); start: [experts + 1] in shared memory.
template <int kThreads, class ExpertAt>
__device__ inline void group_choices(int choices, int top_k, int experts, int tile,
                                     std::int32_t* start, const ExpertGroups& out,
                                     ExpertAt&& expert_at) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const auto is_of = [&](int e, int i) { return i < choices && expert_at(i) == e; };
#pragma unroll 1
  for (int e = warp; e < experts; e += kThreads / 32) {
    int count = 0;
#pragma unroll 1
    for (int i = lane; i - lane < choices; i += 32)
      count += __popc(__ballot_sync(~0u, is_of(e, i)));
    if (lane == 0) start[e + 1] = count;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < choices; i += kThreads) {
    const int e = expert_at(i);
    if (e < 0 || e >= experts) out.slot_of[i] = -1;
  }
  __syncthreads();
  if (warp == 0) place_tiles(experts, tile, start, out);
  __syncthreads();
#pragma unroll 1
  for (int e = int(threadIdx.x); e <= experts; e += kThreads) out.start[e] = start[e];
#pragma unroll 1
  for (int e = warp; e < experts; e += kThreads / 32) {
    int next = start[e];
#pragma unroll 1
    for (int i = lane; i - lane < choices; i += 32) {
      const bool mine = is_of(e, i);
      const unsigned all = __ballot_sync(~0u, mine);
      if (mine) {
        const int slot = next + __popc(all & ((1u << lane) - 1));
        out.token[slot] = i / top_k;
        out.slot_of[i] = slot;
      }
      next += __popc(all);
    }
  }
}

}  // namespace ostro::cuda
