// gemm_integer.cuh for int8: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_integer.cuh"

namespace ostro::cuda {

void gemm_int8(cudaStream_t stream, const Gemm& g, int processors) {
  start_gemm_integer_type<8>(stream, g, processors);
}

}  // namespace ostro::cuda
