// Products of token rows with weight rows: a dense layer, or the experts of a layer.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "backends/cuda/plan/gemm_plan.h"
#include "tensor/view.h"

namespace ostro::cuda {

struct WeightRef {
  const void* data;
  std::int64_t stride;  // elements from one row to the next
  const float* scale;   // [n] of e4m3 and int8 weights; of int4 bf16 [n, k / 128]; else null
};

// y[s, i] = sum_k x[row(s), k] w[i, k]; with `up`, y[s, i] = silu(gate_i) * up_i where gate is the
// product with w and up that with `up`.
//
// x and weights of e4m3 have scales, and so has y if it is e4m3 (kernels/quantise.h).
struct GemmArgs {
  const void* x;
  std::int64_t x_stride;
  const float* x_scale;  // of e4m3
  std::int64_t x_scale_stride;
  const std::int32_t* rows;  // row(s); null: s

  // Dense: `weight` (and `up_weight`), tiles of consecutive rows. Grouped: expert e multiplies by
  // weights[e] (and up_weights[e]) in tiles[0 .. *tile_count), all in device memory. Tiles of at
  // most kSmallTile, where others are larger, lie behind the first tile_count[1].
  WeightRef weight, up_weight;
  const WeightRef* weights;
  const WeightRef* up_weights;
  const TokenTile* tiles;
  const std::int32_t* tile_count;
  int max_tiles;

  std::int64_t w_scale_stride;  // of int4, elements from one row to the next

  std::int64_t slots;
  int n, k;

  void* y;
  std::int64_t y_stride;
  DType y_type;
  bool y_in_packs;  // rows of y in packs of four elements
  float* y_scale;   // of e4m3
  std::int64_t y_scale_stride;
};

struct Gemm {
  GemmArgs args;
  DType x_type, w_type;
  bool swiglu = false;
  int token_tile = 0;   // rows of a tile
  bool listed = false;  // tiles come from a kernel before the predecessor, which then has ended
};

// True if a tensor-core kernel can take it: 16-bit x, w of its type or integers, rows that start at
// 16 bytes. The weights' alignment is the caller's to know.
bool tensor_cores_take(const View& x, DType weight_type, bool weights_aligned);

// bf16 and f16 by wgmma, sums in f32: token_tile is one of kTokenTiles, but for kTmaTile.
void gemm_wgmma(cudaStream_t, const Gemm&);
// e4m3 by wgmma, sums over 128 columns added in f32: token_tile as above. With `swiglu` y is e4m3
// with one scale for 128 columns, else a float type. `weights_aligned`: rows start at 16 bytes;
// others are slow and take tiles of kUnalignedE4m3Tile.
void gemm_e4m3(cudaStream_t, const Gemm&, bool weights_aligned);
// The same for kDecodeTile: a dense layer without `swiglu`, weights aligned, x with one scale a
// row; the grid is for a device of `processors` multiprocessors. The first takes up to
// kMostDenseTokens slots, the second is for more.
void gemm_e4m3_dense(cudaStream_t, const Gemm&, int processors);
void gemm_e4m3_wave(cudaStream_t, const Gemm&, int processors);
// The weights of experts, known to the host.
struct HostWeights {
  std::span<const WeightRef> weight, up;
};
// The products of all for tiles of kTmaTile, of integer weights kIntegerTmaTile, with the same
// bits: `rows` is null; weights are those of `host`, not of `args`: aligned and of at most
// kMostTmaExperts experts. The grid is for a device of `processors` multiprocessors. Beside int4, x
// may be e4m3 in int4's order (kernels/quantise.h), with one scale a row.
void gemm_tma(cudaStream_t, const Gemm&, const HostWeights& host, int processors);
// The same of all types for experts' tiles that persistent_takes(); weights are those of `host`,
// not of `args`, and aligned. Of e4m3 `rows` is null for tiles of more than
// kLargestTileWithoutTma.
void gemm_persistent(cudaStream_t, const Gemm&, const HostWeights& host, int processors);
// int8 and int4 (u8) weights with 16-bit x: token_tile is one of kTokenTiles up to
// kLargestTileWithoutTma. Rows of weights and of int4's scales start at 16 bytes.
void gemm_int8(cudaStream_t, const Gemm&, int processors);
void gemm_int4(cudaStream_t, const Gemm&, int processors);
// Any of the float types, and integer weights, sums in f32 by fused multiply-adds: token_tile is
// kSimpleTokenTile.
void gemm_simple(cudaStream_t, const Gemm&);

inline void gemm(cudaStream_t stream, const Gemm& g, bool tensor_cores, int processors) {
  if (!tensor_cores)
    gemm_simple(stream, g);
  else if (is_integer(g.w_type))
    g.w_type == DType::i8 ? gemm_int8(stream, g, processors) : gemm_int4(stream, g, processors);
  else
    gemm_wgmma(stream, g);
}

}  // namespace ostro::cuda
