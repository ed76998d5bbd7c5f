// gemm_persistent.cuh for f16.
#include "backends/cuda/kernels/gemm_persistent.cuh"

namespace ostro::cuda {

void gemm_persistent_f16(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  gemm_persistent_16<device_t<f16>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
