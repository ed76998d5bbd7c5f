// Tiles and items in shared memory that one warp writes and others read, for the kernels of
// attention whose loads have a warp of their own.
#pragma once

#include <cstdint>

#include "backends/cuda/ptx/mbarrier.cuh"

namespace ostro::cuda {

// kCount places of kBytes from kFirst on, which are used in turn. Each has a barrier that it is
// full and one that it is empty again: 2 * kCount words of 8 bytes from kBarriers on. `i`: the i-th
// that a block puts there.
template <int kCount_, int kFirst, int kBytes, int kBarriers>
struct Ring {
  static constexpr int kCount = kCount_;
  static constexpr int kEnd = kBarriers + 2 * kCount * 8;
  __device__ static std::uint32_t at(std::uint32_t shared, int i) {
    return shared + kFirst + i % kCount * kBytes;
  }
  __device__ static std::uint32_t full(std::uint32_t shared, int i) {
    return shared + kBarriers + i % kCount * 8;
  }
  __device__ static std::uint32_t empty(std::uint32_t shared, int i) {
    return full(shared, i) + kCount * 8;
  }
  __device__ static std::uint32_t parity(int i) { return i / kCount & 1; }
  // By one thread: how many arrive when a place is full, and when it is empty.
  __device__ static void init(std::uint32_t shared, int writers, int readers) {
    for (int i = 0; i < kCount; ++i) {
      ptx::barrier_init(full(shared, i), writers);
      ptx::barrier_init(empty(shared, i), readers);
    }
  }
};

// Where chunk c (16 bytes) of position p stands in a tile of keys or values: in blocks of 128 bytes
// of each row, swizzled.
template <int kBlockBytes>
__device__ inline std::uint32_t swizzled_at(int p, int c) {
  return c / 8 * kBlockBytes + p * 128 + ((c % 8 ^ p % 8) << 4);
}

}  // namespace ostro::cuda
