// attention_mma.cuh for f16.
#include "backends/cuda/kernels/attention_mma.cuh"

namespace ostro::cuda {

void attention_mma_f16(cudaStream_t stream, const AttentionArgs& args, int warps) {
  attention_mma_of<device_t<f16>, device_t<f16>>(stream, args, warps);
}

}  // namespace ostro::cuda
