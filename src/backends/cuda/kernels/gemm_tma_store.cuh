// The results of the GEMM of prompts (gemm_tma.cuh), from sums in registers to memory.
//
// A thread's sum[4 j + 2 r + e] belongs to token slot + 8 r and to column 8 j + 2 (lane % 4) + e:
// four lanes, a quad, have eight consecutive columns of a token. They exchange words so that each
// stores 8 or 16 bytes: a warp's store costs as much time as it touches rows, not bytes.
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm.cuh"

namespace ostro::cuda {

// Where the fragments of a thread lie.
struct Fragment {
  int lane;
  std::int64_t slot;
  bool there[2];  // whether slot and slot + 8 are tokens of the tile
  __device__ int column() const { return lane % 4 * 2; }
};

// w[i] of lane c of a quad changes places with w[c] of lane i. All lanes of the warp take part.
__device__ inline void transpose_quad(std::uint32_t (&w)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t other = __shfl_xor_sync(~0u, odd ? w[i] : w[i + 1], 1);
    (odd ? w[i] : w[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t other = __shfl_xor_sync(~0u, high ? w[i] : w[i + 2], 2);
    (high ? w[i] : w[i + 2]) = other;
  }
}

// 128 outputs of a token from column n0 on, and their scale.
template <int r>
__device__ inline void store_e4m3(const GemmArgs& a, const Fragment& f, int n0,
                                  const float (&sum)[128]) {
  float most = quant::kE4m3LeastAmax;
#pragma unroll
  for (int j = 0; j < 16; ++j)
    most = fmaxf(most, fmaxf(fabsf(sum[4 * j + 2 * r]), fabsf(sum[4 * j + 2 * r + 1])));
  for (int d = 1; d < 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
  const float factor = e4m3_factor(most);
  const auto two = [&](int j) {
    return std::uint32_t(__nv_cvt_float2_to_fp8x2(
        make_float2(sum[4 * j + 2 * r] * factor, sum[4 * j + 2 * r + 1] * factor), __NV_SATFINITE,
        __NV_E4M3));
  };
  const std::int64_t slot = f.slot + 8 * r;
  std::uint8_t* const y = static_cast<std::uint8_t*>(a.y) + slot * a.y_stride + n0;
  // Rows of y are padded to 16 bytes.
#pragma unroll
  for (int j = 0; j < 16; j += 8) {
    std::uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = two(j + i) | two(j + i + 4) << 16;
    transpose_quad(w, f.lane);
    const int first = 8 * (j + f.lane % 4);
    const auto store = [&](int at, int bytes) {
      if (f.there[r] && n0 + at < a.n)
        *reinterpret_cast<uint2*>(y + at) =
            make_uint2(__byte_perm(w[0], w[1], bytes), __byte_perm(w[2], w[3], bytes));
    };
    store(first, 0x5410);
    store(first + 32, 0x7632);
  }
  if (f.there[r] && f.lane % 4 == 0 && n0 < a.n)
    a.y_scale[n0 / quant::kE4m3Group * a.y_scale_stride + slot] = e4m3_scale(most);
}

// kOutputs outputs of a token, all of which exist, in 16-byte stores.
template <int r, int kOutputs, class Y, int kSums>
__device__ inline void store_whole(const Fragment& f, Y* y, const float (&sum)[kSums]) {
  static_assert(kOutputs % 32 == 0 && kSums >= kOutputs / 2);
  if constexpr (sizeof(Y) == 2) {
#pragma unroll
    for (int j = 0; j < kOutputs / 8; j += 4) {
      std::uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pack<Y, 2> two{
            {rounded_to<Y>(sum[4 * (j + i) + 2 * r]), rounded_to<Y>(sum[4 * (j + i) + 2 * r + 1])}};
        w[i] = *reinterpret_cast<const std::uint32_t*>(&two);
      }
      transpose_quad(w, f.lane);
      if (f.there[r])
        *reinterpret_cast<uint4*>(y + 8 * (j + f.lane % 4)) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  } else {
    // Pairs of lanes exchange: an even one stores half of the eight columns of j, an odd one that
    // of the next eight.
    const bool odd = f.lane & 1;
    const int first = f.lane % 4 / 2 * 4 + 8 * int(odd);
#pragma unroll
    for (int j = 0; j < kOutputs / 8; j += 2) {
      const float* const mine = sum + 4 * j + 2 * r;
      float got[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) got[e] = __shfl_xor_sync(~0u, odd ? mine[e] : mine[4 + e], 1);
      if (f.there[r])
        *reinterpret_cast<float4*>(y + first + 8 * j) =
            odd ? make_float4(got[0], got[1], mine[4], mine[5])
                : make_float4(mine[0], mine[1], got[0], got[1]);
    }
  }
}

// kOutputs outputs of a token from column n0 on, those that exist.
template <int r, int kOutputs, class Y, int kSums>
__device__ inline void store_row(const GemmArgs& a, const Fragment& f, int n0, Y* y,
                                 const float (&sum)[kSums]) {
  y += (f.slot + 8 * r) * a.y_stride + n0;
  constexpr std::uintptr_t kStore = 16;
  if (n0 + kOutputs <= a.n && reinterpret_cast<std::uintptr_t>(a.y) % kStore == 0 &&
      a.y_stride * sizeof(Y) % kStore == 0)
    return store_whole<r, kOutputs>(f, y, sum);
  if (!f.there[r]) return;
#pragma unroll
  for (int j = 0; j < kOutputs / 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = 8 * j + f.column() + e;
      if (n0 + column < a.n) y[column] = rounded_to<Y>(sum[4 * j + 2 * r + e]);
    }
}

// The same of both tokens of a thread, to a y of any float type.
template <int kOutputs, int kSums>
__device__ void store_floats(const GemmArgs& a, const Fragment& f, int n0,
                             const float (&sum)[kSums]) {
  visit_y(a, [&](auto* y) {
    store_row<0, kOutputs>(a, f, n0, y, sum);
    store_row<1, kOutputs>(a, f, n0, y, sum);
  });
}

template <class Tile>
__device__ void store_sums(const GemmArgs& a, const Fragment& f, int n0, const float (&sum)[128]) {
  if constexpr (Tile::kSwiglu && Tile::kE4m3) {
    store_e4m3<0>(a, f, n0, sum);
    store_e4m3<1>(a, f, n0, sum);
  } else {
    store_floats<Tile::kOutputs>(a, f, n0, sum);
  }
}

}  // namespace ostro::cuda
