// quant/e4m3.h's formulas on the device, with the same bits.
#pragma once

#include <cuda_fp8.h>

#include "backends/cuda/kernels/element.cuh"
#include "quant/e4m3.h"

namespace ostro::cuda {

__device__ inline float e4m3_scale(float amax) { return __fdiv_rn(amax, kMaxF8e4m3); }
__device__ inline float e4m3_factor(float amax) { return __fdiv_rn(kMaxF8e4m3, amax); }

// max(|x[i]|) and `least`; a NaN is not the largest.
template <int kCount>
__device__ inline float amax(const Pack<float, kCount>& x, float least) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) least = fmaxf(least, fabsf(x.v[i]));
  return least;
}

// max(0, x) over the block; every thread gets it.
template <int kThreads>
__device__ inline float block_max(float x) {
  __shared__ float partial[kThreads / 32];
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float most = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) most = fmaxf(most, partial[i]);
  return most;
}

// Rounded to nearest even, saturating.
__device__ inline std::uint8_t to_e4m3(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}
// x * factor, the first in the lowest byte.
__device__ inline std::uint32_t to_e4m3(const Pack<float, 4>& x, float factor) {
  const auto low = __nv_cvt_float2_to_fp8x2(make_float2(x.v[0] * factor, x.v[1] * factor),
                                            __NV_SATFINITE, __NV_E4M3);
  const auto high = __nv_cvt_float2_to_fp8x2(make_float2(x.v[2] * factor, x.v[3] * factor),
                                             __NV_SATFINITE, __NV_E4M3);
  return std::uint32_t(low) | std::uint32_t(high) << 16;
}

}  // namespace ostro::cuda
