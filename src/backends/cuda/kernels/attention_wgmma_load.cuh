// The loading warpgroup of attention_wgmma.cuh: keys or values of a step a stage.
//
// The bulk copy engine takes boxes of whole pages, or 64 positions of a page, so slots that no row
// sees come along: scores of them are masked, and values of them are looked at
// (attention_wgmma.cuh). Boxes of missing pages are zeros.
#pragma once

#include "backends/cuda/kernels/attention_boxes.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/kernels/attention_wgmma_layout.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/tma.cuh"

namespace ostro::cuda {

// The box at positions [p, p + box_tokens): its row in the cache, or one past its end, which is
// zeros, where nothing of it is seen or its page is missing.
__device__ inline int box_row(const AttentionArgs& a, const BlockRows& b, int p, int box_tokens) {
  const std::int64_t row =
      b.begin < p + box_tokens && p < b.end ? a.cache.row(b.blocks, b.kv_head, p) : -1;
  return int(row < 0 ? a.cache_rows : row);
}

// `done`: steps of the rows before, here and below.
//
// One warp, 16-bit: a lane for each box of 64 columns.
template <class L>
__device__ inline void load_prompt_boxes(const AttentionArgs& a, const BlockRows& b,
                                         const CacheMaps& maps, int done, std::uint32_t shared) {
  const int lane = int(threadIdx.x) % 32;
  const int first = b.begin / L::kStep, steps = (b.end + L::kStep - 1) / L::kStep - first;
  constexpr int kHalves = L::kTileBytes / L::kBlockBytes;
  const int half = lane % kHalves, in_tile = lane / kHalves * maps.box_tokens;
  const bool mine = in_tile < L::kStep;
  const auto find = [&](int i) {
    return mine ? box_row(a, b, (first + i) * L::kStep + in_tile, maps.box_tokens) : 0;
  };
  int row = find(0);
  for (int i = 0; i < steps; ++i) {
    const int next = i + 1 < steps ? find(i + 1) : 0;
#pragma unroll
    for (int is_value = 0; is_value < 2; ++is_value) {
      const int tile = 2 * (done + i) + is_value;
      ptx::barrier_wait(L::Tiles::empty(shared, tile), L::Tiles::parity(tile) ^ 1);
      if (lane == 0) ptx::barrier_arrive_expect(L::Tiles::full(shared, tile), L::kTileBytes);
      __syncwarp();
      if (mine)
        ptx::copy_box(L::Tiles::at(shared, tile) + half * L::kBlockBytes + in_tile * 128,
                      is_value ? maps.v : maps.k, 128 * half, row, L::Tiles::full(shared, tile));
    }
    row = next;
  }
}

// Four warps, e4m3: boxes come into raw stages, from where each warp widens its part of a tile.
template <class L, int kHead>
__device__ inline void load_prompt_e4m3(const AttentionArgs& a, const BlockRows& b,
                                        const CacheMaps& maps, int done, std::uint32_t shared) {
  static_assert(L::kStep == kPositions);
  const int thread = int(threadIdx.x) % 128, lane = thread % 32;
  const bool fetches = thread < 32;
  const int first = b.begin / kPositions, steps = (b.end + kPositions - 1) / kPositions - first;
  const auto fetch = [&](int i) {
    const bool is_value = lane % 2;
    const int in_tile = lane / 2 * maps.box_tokens;
    const bool mine = in_tile < kPositions;
    const int row = mine ? box_row(a, b, (first + i) * kPositions + in_tile, maps.box_tokens) : 0;
    ptx::barrier_wait(L::Raw::empty(shared, done + i), L::Raw::parity(done + i) ^ 1);
    if (lane == 0) ptx::barrier_arrive_expect(L::Raw::full(shared, done + i), L::kRawStageBytes);
    __syncwarp();
    const std::uint32_t to =
        L::Raw::at(shared, done + i) + is_value * L::kRawTileBytes + in_tile * 128;
    if (mine) ptx::copy_box(to, is_value ? maps.v : maps.k, 0, row, L::Raw::full(shared, done + i));
  };
  // A thread widens one chunk of 16 bytes of four positions. Those of eight threads that access
  // shared memory together are in other banks both where they are read and where they are written.
  const int chunk = thread % 4 + thread / 8 % 2 * 4;
  const int in_eight = thread / 16 % 4 ^ (thread / 4 % 2 ? 5 : 0);
  const int position = thread / 64 * 8 + in_eight;
  const std::uint32_t from_at = position * 128 + ((chunk ^ in_eight) << 4);
  const std::uint32_t to_at = L::at(position, 2 * chunk);
  const auto widen = [&](std::uint32_t from, std::uint32_t to) {
    if (kHead == 64 && chunk >= 4) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 x = ptx::load16(from + from_at + j * 16 * 128);
      const auto eight = [](std::uint32_t x, std::uint32_t y) {
        return make_uint4(widen_e4m3(x & 0xffff), widen_e4m3(x >> 16), widen_e4m3(y & 0xffff),
                          widen_e4m3(y >> 16));
      };
      ptx::store16(to + to_at + j * 16 * 128, eight(x.x, x.y));
      ptx::store16(to + (to_at ^ 16) + j * 16 * 128, eight(x.z, x.w));
    }
  };
  if (fetches)
    for (int i = 0; i < min(steps, L::kRawStages - 1); ++i) fetch(i);
  for (int i = 0; i < steps; ++i) {
    const int ahead = i + L::kRawStages - 1, keys = 2 * (done + i), values = keys + 1;
    if (fetches && ahead < steps) fetch(ahead);
    ptx::barrier_wait(L::Raw::full(shared, done + i), L::Raw::parity(done + i));
    const std::uint32_t from = L::Raw::at(shared, done + i);
    ptx::barrier_wait(L::Tiles::empty(shared, keys), L::Tiles::parity(keys) ^ 1);
    widen(from, L::Tiles::at(shared, keys));
    ptx::barrier_wait(L::Tiles::empty(shared, values), L::Tiles::parity(values) ^ 1);
    widen(from + L::kRawTileBytes, L::Tiles::at(shared, values));
    ptx::fence_async_proxy();  // for wgmma, and for the copy that comes to `from` next
    __syncwarp();
    if (lane == 0) {
      ptx::barrier_arrive(L::Tiles::full(shared, keys));
      ptx::barrier_arrive(L::Tiles::full(shared, values));
      ptx::barrier_arrive(L::Raw::empty(shared, done + i));
    }
  }
}

}  // namespace ostro::cuda
