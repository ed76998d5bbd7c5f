// attention_mma.cuh for bf16.
#include "backends/cuda/kernels/attention_mma.cuh"

namespace ostro::cuda {

void attention_mma_bf16(cudaStream_t stream, const AttentionArgs& args, int warps) {
  attention_mma_of<device_t<bf16>, device_t<bf16>>(stream, args, warps);
}

}  // namespace ostro::cuda
