// Copies of boxes of a matrix from global to shared memory by the bulk copy engine (PTX ISA,
// "cp.async.bulk.tensor"). What lies outside the matrix is zero, and counts as bytes like the rest.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace ostro::cuda::ptx {

// `bytes` in a row, a multiple of 16 like both addresses; they count at `barrier`.
__device__ inline void copy_bytes(std::uint32_t to, const void* from, int bytes,
                                  std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Brings `map`, a kernel's parameter, to where the engine reads it.
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of `map` whose first element is (row, column), to `to`; its bytes count at `barrier`.
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The same of what no other block reads soon: the first that L2 gives up.
__device__ inline void copy_box_once(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                     std::uint32_t barrier) {
  asm volatile(
      "{ .reg .b64 policy; createpolicy.fractional.L2::evict_first.b64 policy, 1.0;"
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], policy; }" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// As copy_box, to the same place and barrier in every block of the cluster whose bit is in
// `blocks`.
__device__ inline void copy_box_to(std::uint16_t blocks, std::uint32_t to, const CUtensorMap& map,
                                   int column, int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

}  // namespace ostro::cuda::ptx
