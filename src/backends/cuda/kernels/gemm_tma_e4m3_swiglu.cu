// gemm_tma.cuh for gate and up of e4m3: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_tma.cuh"

namespace ostro::cuda {

void gemm_tma_e4m3_swiglu(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                          int processors) {
  start_gemm_tma<TmaTile<__nv_fp8_e4m3, true, false>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
