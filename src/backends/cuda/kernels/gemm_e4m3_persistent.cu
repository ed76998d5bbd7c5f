// gemm_e4m3_persistent.cuh for products without an activation.
#include "backends/cuda/kernels/gemm_e4m3_persistent.cuh"

namespace ostro::cuda {

void gemm_e4m3_persistent_swiglu(cudaStream_t, const Gemm&, const HostWeights&, int processors);

void gemm_e4m3_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                          int processors) {
  if (g.swiglu) return gemm_e4m3_persistent_swiglu(stream, g, host, processors);
  switch (g.token_tile) {
    case 16:
      return start_gemm_e4m3_persistent<PersistentTile<16, 6, false>>(stream, g, host, processors);
    case 32:
      return start_gemm_e4m3_persistent<PersistentTile<32, 6, false>>(stream, g, host, processors);
    case 64:
      return start_gemm_e4m3_persistent<PersistentTile<64, 5, false>>(stream, g, host, processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
