// gemm_wgmma.cuh for f16: a file a type, so that they compile side by side.
#include "backends/cuda/kernels/gemm_wgmma.cuh"

namespace ostro::cuda {

void gemm_wgmma_f16(cudaStream_t stream, const Gemm& g) { gemm_wgmma_of<device_t<f16>>(stream, g); }

}  // namespace ostro::cuda
