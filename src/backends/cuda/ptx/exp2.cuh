// 2^x in one instruction (PTX ISA, "ex2"): within 2 units in the last place, 0 below 2^-126.
#pragma once

namespace ostro::cuda::ptx {

__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ostro::cuda::ptx
