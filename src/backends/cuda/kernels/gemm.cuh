// What the GEMM kernels share: the order of blocks, the tile of a block, the activation.
#pragma once

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/gemm.h"
#include "backends/cuda/ptx/exp2.cuh"
#include "backends/cuda/ptx/reciprocal.cuh"

namespace ostro::cuda {

// Blocks in the order that keeps both operands in L2: kRaster tiles of weight rows by all token
// tiles, then the next weight rows.
struct BlockTile {
  static constexpr int kRaster = 8;
  int row, token;

  __device__ BlockTile(int row_tiles, int token_tiles, int index = int(blockIdx.x),
                       int raster = kRaster) {
    const int group_size = raster * token_tiles;
    const int group = index / group_size, i = index % group_size;
    const int first = group * raster;
    const int rows = min(raster, row_tiles - first);
    row = first + i % rows;
    token = i / rows;
  }
};

// The token tile of a block; count 0: there is none.
__device__ inline TokenTile token_tile_of(const GemmArgs& a, int index, int tile) {
  if (a.tiles) return index < *a.tile_count ? a.tiles[index] : TokenTile{0, 0, 0};
  const std::int64_t first = std::int64_t(index) * tile;
  return {0, std::int32_t(first), std::int32_t(min(std::int64_t(tile), a.slots - first))};
}

// silu(gate) * up in six instructions: the tensor cores wait for it between two tiles.
__device__ inline float swiglu(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  return gate * ptx::reciprocal(1 + ptx::exp2(-kLog2E * gate)) * up;
}

// Calls store(y) with y as a pointer to its elements, which are of a float type.
template <class Store>
__device__ inline void visit_y(const GemmArgs& a, Store&& store) {
  if (a.y_type == DType::f32)
    store(static_cast<float*>(a.y));
  else if (a.y_type == DType::bf16)
    store(static_cast<__nv_bfloat16*>(a.y));
  else
    store(static_cast<__half*>(a.y));
}

template <int kCount>
__device__ inline void store_output(const GemmArgs& a, std::int64_t slot, int column,
                                    const Pack<float, kCount>& value) {
  visit_y(a, [&]<class Y>(Y* y) {
    Pack<Y, kCount> out;
#pragma unroll
    for (int j = 0; j < kCount; ++j) out.v[j] = rounded_to<Y>(value.v[j]);
    store_pack(y + slot * a.y_stride + column, out);
  });
}

// Four outputs of a slot, those that exist.
__device__ inline void store_outputs(const GemmArgs& a, std::int64_t slot, int column,
                                     const Pack<float, 4>& value) {
  if (a.y_in_packs && column + 4 <= a.n) {
    store_output(a, slot, column, value);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column + j < a.n) store_output(a, slot, column + j, Pack<float, 1>{{value.v[j]}});
  }
}

}  // namespace ostro::cuda
