// attention_mma.cuh for bf16 activations on an e4m3 cache.
#include "backends/cuda/kernels/attention_mma.cuh"

namespace ostro::cuda {

void attention_mma_bf16_e4m3(cudaStream_t stream, const AttentionArgs& args, int warps) {
  attention_mma_of<device_t<bf16>, device_t<f8e4m3>>(stream, args, warps);
}

}  // namespace ostro::cuda
