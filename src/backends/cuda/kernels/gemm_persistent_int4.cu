// gemm_persistent_integer.cuh for int4: a file for each, so that they compile side by side.
#include "backends/cuda/kernels/gemm_persistent_integer.cuh"

namespace ostro::cuda {

void gemm_persistent_int4(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                          int processors) {
  start_gemm_persistent_integer_type<4>(stream, g, w, processors);
}

}  // namespace ostro::cuda
