// gemm_e4m3.cuh for products without an activation: x has one scale a row, or one for 128 columns.
#include "backends/cuda/kernels/gemm_e4m3.cuh"

namespace ostro::cuda {

void gemm_e4m3_swiglu(cudaStream_t, const Gemm&, bool weights_aligned);

namespace {

template <bool kGroupScales>
void start(cudaStream_t stream, const Gemm& g, bool aligned) {
  switch (g.token_tile) {
    case 8:
      return start_gemm_e4m3<E4m3Tile<8, 1, 1, 11, 2, false, kGroupScales>>(stream, g, aligned);
    case 16:
      return start_gemm_e4m3<E4m3Tile<16, 1, 1, 10, 2, false, kGroupScales>>(stream, g, aligned);
    case 32:
      return start_gemm_e4m3<E4m3Tile<32, 1, 1, 9, 2, false, kGroupScales>>(stream, g, aligned);
    case 64:
      return start_gemm_e4m3<E4m3Tile<64, 1, 1, 6, 2, false, kGroupScales>>(stream, g, aligned);
    case 128:
      return start_gemm_e4m3<E4m3Tile<128, 2, 2, 4, 1, false, kGroupScales>>(stream, g, aligned);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace

void gemm_e4m3(cudaStream_t stream, const Gemm& g, bool weights_aligned) {
  if (g.swiglu)
    gemm_e4m3_swiglu(stream, g, weights_aligned);
  else if (g.args.x_scale_stride > 0)
    start<true>(stream, g, weights_aligned);
  else
    start<false>(stream, g, weights_aligned);
}

}  // namespace ostro::cuda
