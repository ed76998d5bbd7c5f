// gemm_persistent.cuh of e4m3 for gate and up: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_persistent.cuh"

namespace ostro::cuda {

namespace {

template <int kTokens, int kStages>
using Swiglu = PersistentTile<__nv_fp8_e4m3, kTokens, kStages, true>;

}  // namespace

void gemm_persistent_e4m3_swiglu(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                                 int processors) {
  switch (g.token_tile) {
    case 8:
      return start_gemm_persistent<Swiglu<8, 6>>(stream, g, w, processors);
    case 16:
      return start_gemm_persistent<Swiglu<16, 6>>(stream, g, w, processors);
    case 32:
      return start_gemm_persistent<Swiglu<32, 5>>(stream, g, w, processors);
    case 64:
      return start_gemm_persistent<Swiglu<64, 4>>(stream, g, w, processors);
    case 96:
      return start_gemm_persistent<Swiglu<96, 4>>(stream, g, w, processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
