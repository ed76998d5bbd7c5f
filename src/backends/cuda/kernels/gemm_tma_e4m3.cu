// gemm_tma.cuh for e4m3 without an activation: x has one scale a row, or one for 128 columns.
#include "backends/cuda/kernels/gemm_tma.cuh"

namespace ostro::cuda {

void gemm_tma_e4m3_swiglu(cudaStream_t, const Gemm&, const HostWeights&, int processors);

void gemm_tma_e4m3(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  if (g.swiglu)
    gemm_tma_e4m3_swiglu(stream, g, w, processors);
  else if (g.args.x_scale_stride > 0)
    start_gemm_tma<TmaTile<__nv_fp8_e4m3, false, true>>(stream, g, w, processors);
  else
    start_gemm_tma<TmaTile<__nv_fp8_e4m3, false, false>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
