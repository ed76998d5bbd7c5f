// gemm_persistent.cuh for bf16: a file a type, so that they compile side by side.
#include "backends/cuda/kernels/gemm_persistent.cuh"

namespace ostro::cuda {

void gemm_persistent_bf16(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                          int processors) {
  gemm_persistent_16<device_t<bf16>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
