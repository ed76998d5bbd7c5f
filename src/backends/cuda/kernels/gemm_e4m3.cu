// gemm_e4m3.cuh for products without an activation: x has one scale a row, or one for 128 columns.
#include "backends/cuda/kernels/gemm_e4m3.cuh"

namespace ostro::cuda {

void gemm_e4m3_swiglu(cudaStream_t, const Gemm&, bool weights_aligned);

namespace {

template <int kTokens, int kStages, bool kGroupScales>
using Narrow = E4m3Tile<kTokens, 1, 1, kStages, 2, false, kGroupScales>;

template <bool kGroupScales>
void start(cudaStream_t stream, const Gemm& g, bool aligned) {
  if (!aligned) return start_gemm_e4m3<Narrow<64, 6, kGroupScales>, false>(stream, g);
  switch (g.token_tile) {
    case 8:
      return start_gemm_e4m3<Narrow<8, 11, kGroupScales>>(stream, g);
    case 16:
      return start_gemm_e4m3<Narrow<16, 10, kGroupScales>>(stream, g);
    case 32:
      return start_gemm_e4m3<Narrow<32, 9, kGroupScales>>(stream, g);
    case 64:
      return start_gemm_e4m3<Narrow<64, 6, kGroupScales>>(stream, g);
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
