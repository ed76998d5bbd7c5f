// gemm_tma.cuh for f16.
#include "backends/cuda/kernels/gemm_tma.cuh"

namespace ostro::cuda {

void gemm_tma_f16(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  g.swiglu ? start_gemm_tma<TmaTile<__half, true, false>>(stream, g, w, processors)
           : start_gemm_tma<TmaTile<__half, false, false>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
