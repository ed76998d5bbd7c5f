// GEMM without tensor cores: float32 engines, and rows that do not start at 16 bytes. Integer
// weights are decoded one by one.
//
// Grid:     one block of 256 threads for 64 tokens x 64 weight rows; a thread sums 4 x 4 outputs.
// Order:    each output is one chain of fused multiply-adds over rising k, whatever the tokens.
// Bound by: FMA throughput (67 TFLOP/s) from about 64 tokens; below, by the latency of its loads.
//           float32 is the reference arithmetic: it is right first.
// Floor on an H100: 2 tokens n k / 67e12 s. Not measured.
#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/launch.h"
#include "quant/int4.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 64, kTokens = kSimpleTokenTile, kDepth = 16;
constexpr int kEach = 4;  // tokens and rows of a thread
static_assert(kRows / kEach * (kTokens / kEach) == kThreads);

// A row of integer weights; elements are decoded as they are read.
struct Int8Row {
  const std::int8_t* data;
  float scale;
  __device__ explicit operator bool() const { return data; }
  __device__ float operator[](int k) const { return float(data[k]) * scale; }
};
struct Int4Row {
  const std::uint8_t* data;
  const __nv_bfloat16* scale;
  __device__ explicit operator bool() const { return data; }
  __device__ float operator[](int k) const {
    constexpr int kGroup = int(quant::kInt4Group), kBytes = int(quant::kInt4GroupBytes);
    const int c = k % kGroup;  // where quant::int4_byte and int4_shift find it:
    const int byte =
        data[k / kGroup * kBytes + 16 * (c / 2 % 4) + 4 * (c / 32) + 2 * (c % 2) + c / 8 % 2];
    return float((byte >> c / 16 % 2 * 4 & 15) - 8) * widen(scale[k / kGroup]);
  }
};

// Row i of weights of W: a pointer, or one of the above; false if there is none.
template <class W>
__device__ inline auto row_of(const GemmArgs& a, const WeightRef& w, int i) {
  const bool there = i < a.n;
  if constexpr (std::is_same_v<W, Int8Row>) {
    const auto* const data = static_cast<const std::int8_t*>(w.data) + i * w.stride;
    return there ? Int8Row{data, w.scale[i]} : Int8Row{};
  } else if constexpr (std::is_same_v<W, Int4Row>) {
    const auto* const data = static_cast<const std::uint8_t*>(w.data) + i * w.stride;
    const auto* const scale = reinterpret_cast<const __nv_bfloat16*>(w.scale);
    return there ? Int4Row{data, scale + i * a.w_scale_stride} : Int4Row{};
  } else {
    return there ? static_cast<const W*>(w.data) + i * w.stride : nullptr;
  }
}

// Rows 0..63 of a matrix, columns [k0, k0 + kDepth), transposed to to[k][row].
template <class Row>
__device__ void load_tile(float (&to)[kDepth][kRows + kEach], Row&& row_of, int k0, int k) {
#pragma unroll
  for (int j = 0; j < kRows * kDepth / kThreads; ++j) {
    const int i = int(threadIdx.x) + j * kThreads;
    const int row = i / kDepth, column = i % kDepth;
    const auto from = row_of(row);
    to[column][row] = from && k0 + column < k ? widen(from[k0 + column]) : 0;
  }
}

__device__ inline void multiply(float (&sum)[kEach][kEach],
                                const float (&x)[kDepth][kTokens + kEach],
                                const float (&w)[kDepth][kRows + kEach], int token, int row) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const auto a = load_pack<kEach>(&x[k][token]);
    const auto b = load_pack<kEach>(&w[k][row]);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < kEach; ++j) sum[i][j] = fmaf(a.v[i], b.v[j], sum[i][j]);
  }
}

template <class X, class W, bool kSwiglu>
__global__ void __launch_bounds__(kThreads) gemm_simple_kernel(const GemmArgs a) {
  alignas(16) __shared__ float x_tile[kDepth][kTokens + kEach];
  alignas(16) __shared__ float w_tile[kDepth][kRows + kEach];
  alignas(16) __shared__ float up_tile[kSwiglu ? kDepth : 1][kRows + kEach];
  begin_kernel();
  const BlockTile block((a.n + kRows - 1) / kRows, a.max_tiles);
  const TokenTile tile = token_tile_of(a, block.token, kTokens);
  if (tile.count == 0) return;
  const int n0 = block.row * kRows;

  const auto x_row = [&](int i) -> const X* {
    if (i >= tile.count) return nullptr;
    const std::int64_t slot = tile.first + i;
    return static_cast<const X*>(a.x) + (a.rows ? a.rows[slot] : slot) * a.x_stride;
  };
  const auto rows_of = [&](const WeightRef& w) {
    return [&a, w, n0](int i) { return row_of<W>(a, w, n0 + i); };
  };
  const auto w_row = rows_of(a.tiles ? a.weights[tile.expert] : a.weight);
  const auto up_row = rows_of(!kSwiglu  ? WeightRef{}
                              : a.tiles ? a.up_weights[tile.expert]
                                        : a.up_weight);

  const int token = int(threadIdx.x) / (kRows / kEach) * kEach;
  const int row = int(threadIdx.x) % (kRows / kEach) * kEach;
  float sum[kEach][kEach] = {}, up_sum[kEach][kEach] = {};
  for (int k0 = 0; k0 < a.k; k0 += kDepth) {
    load_tile(x_tile, x_row, k0, a.k);
    load_tile(w_tile, w_row, k0, a.k);
    if constexpr (kSwiglu) load_tile(up_tile, up_row, k0, a.k);
    __syncthreads();
    multiply(sum, x_tile, w_tile, token, row);
    if constexpr (kSwiglu) multiply(up_sum, x_tile, up_tile, token, row);
    __syncthreads();
  }
  for (int i = 0; i < kEach && token + i < tile.count; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (n0 + row + j < a.n)
        store_output(a, tile.first + token + i, n0 + row + j,
                     Pack<float, 1>{{kSwiglu ? swiglu(sum[i][j], up_sum[i][j]) : sum[i][j]}});
}

template <class X, class W>
void start(cudaStream_t stream, const Gemm& g) {
  OSTRO_CHECK(g.token_tile == kTokens, "tiles of ", g.token_tile, " tokens, not ", kTokens);
  launch(
      stream,
      {.blocks = ceil_div<std::int64_t>(g.args.n, kRows) * g.args.max_tiles, .threads = kThreads},
      g.swiglu ? gemm_simple_kernel<X, W, true> : gemm_simple_kernel<X, W, false>, g.args);
}

}  // namespace

void gemm_simple(cudaStream_t stream, const Gemm& g) {
  visit_dtype<float, f16, bf16>(g.x_type, "Linear and ExpertMlp on CUDA", [&]<class X>() {
    if (g.w_type == g.x_type)
      start<device_t<X>, device_t<X>>(stream, g);
    else if (g.w_type == DType::i8)
      start<device_t<X>, Int8Row>(stream, g);
    else if (g.w_type == DType::u8)
      start<device_t<X>, Int4Row>(stream, g);
    else
      start<device_t<X>, float>(stream, g);
  });
}

}  // namespace ostro::cuda
