// gemm_persistent_integer.cuh for int8: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_persistent_integer.cuh"

namespace ostro::cuda {

void gemm_persistent_int8(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                          int processors) {
  start_gemm_persistent_integer_type<8>(stream, g, w, processors);
}

}  // namespace ostro::cuda
