// Shared memory of attention_wgmma.cuh.
#pragma once

#include "backends/cuda/kernels/attention_ring.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"

namespace ostro::cuda {

// kWiden: an e4m3 cache, whose keys and values come in raw stages first.
template <int kHead, bool kWiden>
struct PromptLayout {
  static constexpr int kGroups = 2;  // warpgroups that compute
  static constexpr int kThreads = 128 * (kGroups + 1);
  // Positions of a product. Longer steps have fewer gaps, but leave no room for raw stages.
  static constexpr int kStep = kWiden ? kPositions : 2 * kPositions;
  static_assert(kSplitTokens % kStep == 0);
  // The keys of a step, its values, the keys of the next and so on, 16-bit.
  static constexpr int kBlockBytes = kStep * 128;       // 64 columns: a swizzled tile
  static constexpr int kTileBytes = kStep * kHead * 2;  // keys or values
  static constexpr int kStages = (kWiden ? 96 << 10 : 160 << 10) / kTileBytes;
  // Of the parts before, each thread's own.
  static constexpr int kJoined = kStages * kTileBytes;
  static constexpr int kJoinedBytes = 128 * kHead / 2 * 4;
  // Eight rows of zeros, instead of values that are not finite.
  static constexpr int kZeros = kJoined + kGroups * kJoinedBytes;
  // Keys and values of a step of an e4m3 cache on their way to the stages.
  static constexpr int kRaw = kZeros + 1024;
  static constexpr int kRawStages = 4;
  static constexpr int kRawTileBytes = kPositions * 128;
  static constexpr int kRawStageBytes = 2 * kRawTileBytes;
  static constexpr int kBarriers = kRaw + (kWiden ? kRawStages * kRawStageBytes : 0);
  using Tiles = Ring<kStages, 0, kTileBytes, kBarriers>;
  using Raw = Ring<kRawStages, kRaw, kRawStageBytes, Tiles::kEnd>;
  static constexpr int kSharedBytes = Raw::kEnd + 1024;
  static_assert(kSharedBytes <= 227 << 10);

  __device__ static std::uint32_t at(int p, int c) { return swizzled_at<kBlockBytes>(p, c); }
};

}  // namespace ostro::cuda
