// gemm_integer.cuh for int4: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_integer.cuh"

namespace ostro::cuda {

void gemm_int4(cudaStream_t stream, const Gemm& g, int processors) {
  start_gemm_integer_type<4>(stream, g, processors);
}

}  // namespace ostro::cuda
