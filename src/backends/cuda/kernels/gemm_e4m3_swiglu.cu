// gemm_e4m3.cuh for gate and up: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_e4m3.cuh"

namespace ostro::cuda {

template <int kTokens, int kStages, int kBlocks>
using Swiglu = E4m3Tile<kTokens, 2, 2, kStages, kBlocks, true, false>;

void gemm_e4m3_swiglu(cudaStream_t stream, const Gemm& g, bool aligned) {
  if (!aligned) return start_gemm_e4m3<Swiglu<64, 5, 1>, false>(stream, g);
  switch (g.token_tile) {
    case 8:
      return start_gemm_e4m3<Swiglu<8, 3, 2>>(stream, g);
    case 16:
      return start_gemm_e4m3<Swiglu<16, 3, 2>>(stream, g);
    case 32:
      return start_gemm_e4m3<Swiglu<32, 3, 2>>(stream, g);
    case 64:
      return start_gemm_e4m3<Swiglu<64, 5, 1>>(stream, g);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
