// 1 / x in one instruction (PTX ISA, "rcp"): within a unit in the last place, 0 above 2^126.
#pragma once

namespace ostro::cuda::ptx {

__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ostro::cuda::ptx
