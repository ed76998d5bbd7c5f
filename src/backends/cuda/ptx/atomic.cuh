// A counter of a kernel's blocks (PTX ISA, "atom" and "Memory Consistency Model").
#pragma once

namespace ostro::cuda::ptx {

// Counts from 0 to `most` and round again; returns what it was. What this thread has written or
// seen before is seen after it by whoever counts later.
__device__ inline unsigned count_round(unsigned* counter, unsigned most) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(most)
               : "memory");
  return before;
}

}  // namespace ostro::cuda::ptx
