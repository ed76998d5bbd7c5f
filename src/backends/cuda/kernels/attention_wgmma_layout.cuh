// Shared memory of attention_wgmma.cuh.
#pragma once

#include "backends/cuda/kernels/attention_rows.cuh"

namespace ostro::cuda {

template <int kHead>
struct PromptLayout {
  static constexpr int kGroups = 2;  // warpgroups that compute
  static constexpr int kThreads = 128 * (kGroups + 1);
  // Tiles of keys and values, 16-bit, in the order that they are used.
  static constexpr int kStages = 4;
  static constexpr int kBlockBytes = kPositions * 128;       // 64 columns: a swizzled tile
  static constexpr int kTileBytes = kPositions * kHead * 2;  // keys or values
  static constexpr int kStageBytes = 2 * kTileBytes;
  // Values of one tile without NaN and infinity, for each group.
  static constexpr int kCopies = kStages * kStageBytes;
  // Tiles of an e4m3 cache on their way to the stages.
  static constexpr int kRawStages = 4;
  static constexpr int kRawTileBytes = kPositions * 128;
  static constexpr int kRawStageBytes = 2 * kRawTileBytes;
  static constexpr int kRaw = kCopies + kGroups * kTileBytes;
  // Of each stage: that it is full, that it is empty again.
  static constexpr int kBarriers = kRaw + kRawStages * kRawStageBytes;
  static constexpr int kRawBarriers = kBarriers + 2 * kStages * 8;
  static constexpr int kSharedBytes = kRawBarriers + 2 * kRawStages * 8 + 1024;
  static_assert(kSharedBytes <= 227 << 10);

  // Of the i-th tile of a block.
  __device__ static std::uint32_t stage(std::uint32_t shared, int i) {
    return shared + i % kStages * kStageBytes;
  }
  __device__ static std::uint32_t full(std::uint32_t shared, int i) {
    return shared + kBarriers + i % kStages * 8;
  }
  __device__ static std::uint32_t empty(std::uint32_t shared, int i) {
    return full(shared, i) + kStages * 8;
  }
  __device__ static std::uint32_t parity(int i) { return i / kStages & 1; }
  __device__ static std::uint32_t raw_stage(std::uint32_t shared, int i) {
    return shared + kRaw + i % kRawStages * kRawStageBytes;
  }
  __device__ static std::uint32_t raw_full(std::uint32_t shared, int i) {
    return shared + kRawBarriers + i % kRawStages * 8;
  }
  __device__ static std::uint32_t raw_empty(std::uint32_t shared, int i) {
    return raw_full(shared, i) + kRawStages * 8;
  }
  __device__ static std::uint32_t raw_parity(int i) { return i / kRawStages & 1; }

  // Where chunk c (16 bytes) of position p stands in a tile.
  __device__ static std::uint32_t at(int p, int c) {
    return c / 8 * kBlockBytes + p * 128 + ((c % 8 ^ p % 8) << 4);
  }
};

}  // namespace ostro::cuda
