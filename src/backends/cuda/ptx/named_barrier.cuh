// Barriers among some of a block's threads (PTX ISA, "barrier"). Ids 1 to 15; 0 is __syncthreads().
#pragma once

namespace ostro::cuda::ptx {

// Waits until `threads` threads, whole warps, have come or have said that they need not wait.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Whether x is true in any of the threads, all of which wait.
__device__ inline bool named_barrier_any(int id, int threads, bool x) {
  int any;
  asm volatile(
      "{ .reg .pred x, any; setp.ne.b32 x, %1, 0; barrier.cta.red.or.pred any, %2, %3, x;"
      "selp.b32 %0, 1, 0, any; }"
      : "=r"(any)
      : "r"(int(x)), "r"(id), "r"(threads)
      : "memory");
  return any != 0;
}

}  // namespace ostro::cuda::ptx
