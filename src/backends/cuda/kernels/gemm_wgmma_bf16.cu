// gemm_wgmma.cuh for bf16: a file a type, so that they compile side by side.
#include "backends/cuda/kernels/gemm_wgmma.cuh"

namespace ostro::cuda {

void gemm_wgmma_bf16(cudaStream_t stream, const Gemm& g) {
  gemm_wgmma_of<device_t<bf16>>(stream, g);
}

}  // namespace ostro::cuda
