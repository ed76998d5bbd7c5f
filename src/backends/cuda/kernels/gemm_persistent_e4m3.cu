// gemm_persistent.cuh of e4m3 for products without an activation.
#include "backends/cuda/kernels/gemm_persistent.cuh"

namespace ostro::cuda {

void gemm_persistent_e4m3_swiglu(cudaStream_t, const Gemm&, const HostWeights&, int processors);

namespace {

template <int kTokens, int kStages, int kGroups = 2, int kHalves = 2>
using Plain = PersistentTile<__nv_fp8_e4m3, kTokens, kStages, false, kGroups, kHalves>;

}  // namespace

void gemm_persistent_e4m3(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                          int processors) {
  if (g.swiglu) return gemm_persistent_e4m3_swiglu(stream, g, w, processors);
  switch (g.token_tile) {
    case 8:
      return few_wide_tiles(g, w, processors)
                 ? start_gemm_persistent<Plain<8, 24, 1, 1>>(stream, g, w, processors)
                 : start_gemm_persistent<Plain<8, 6>>(stream, g, w, processors);
    case 16:
      return start_gemm_persistent<Plain<16, 6>>(stream, g, w, processors);
    case 32:
      return start_gemm_persistent<Plain<32, 6>>(stream, g, w, processors);
    case 64:
      return start_gemm_persistent<Plain<64, 5>>(stream, g, w, processors);
    case 96:
      return start_gemm_persistent<Plain<96, 5>>(stream, g, w, processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
