// gemm_e4m3_persistent.cuh for gate and up: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_e4m3_persistent.cuh"

namespace ostro::cuda {

void gemm_e4m3_persistent_swiglu(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                                 int processors) {
  switch (g.token_tile) {
    case 16:
      return start_gemm_e4m3_persistent<PersistentTile<16, 6, true>>(stream, g, host, processors);
    case 32:
      return start_gemm_e4m3_persistent<PersistentTile<32, 5, true>>(stream, g, host, processors);
    case 64:
      return start_gemm_e4m3_persistent<PersistentTile<64, 4, true>>(stream, g, host, processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
