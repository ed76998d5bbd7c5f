// gemm_integer_tma.cuh for int8: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_integer_tma.cuh"

namespace ostro::cuda {

void gemm_tma_int8(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  start_gemm_integer_tma_type<8>(stream, g, w, processors);
}

}  // namespace ostro::cuda
