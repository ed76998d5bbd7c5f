// Element types on the device: Ostro's storage types and CUDA's, widening, rounding, vectors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "tensor/view.h"

namespace ostro::cuda {

template <class T>
struct DeviceElement {
  using type = T;
};
template <>
struct DeviceElement<bf16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceElement<f16> {
  using type = __half;
};
template <>
struct DeviceElement<f8e4m3> {
  using type = __nv_fp8_e4m3;
};
// What CUDA calls the element type T of a View.
template <class T>
using device_t = typename DeviceElement<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_fp8_e4m3 x) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x.__x, __NV_E4M3)));
}

// To nearest, ties to even; e4m3 saturates.
template <class T>
__device__ inline T rounded_to(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_fp8_e4m3>)
    return __nv_fp8_e4m3(x);
  else
    return x;
}

// kCount elements that move together.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount > 16 ? 16 : sizeof(T) * kCount) Pack {
  T v[kCount];
};

template <int kCount, class T>
__device__ inline Pack<T, kCount> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
}
template <int kCount, class T>
__device__ inline void store_pack(T* p, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(p) = pack;
}

// True if every row of v starts where packs of `bytes` may start.
inline bool rows_aligned(const View& v, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(v.data) % bytes == 0 &&
         (v.rows <= 1 || std::size_t(v.row_stride) * size_of(v.dtype) % bytes == 0);
}

// Every kernel calls this first: its predecessors' memory is complete after it, and its successor
// may be brought to the multiprocessors that fall idle (it waits here in its turn).
__device__ inline void begin_kernel() {
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
}

__device__ inline float warp_sum(float x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

}  // namespace ostro::cuda
