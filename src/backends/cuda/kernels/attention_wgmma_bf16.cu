// attention_wgmma.cuh for bf16.
#include "backends/cuda/kernels/attention_wgmma.cuh"

namespace ostro::cuda {

void attention_wgmma_bf16(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  attention_wgmma_of<device_t<bf16>, device_t<bf16>>(stream, args, blocks);
}

}  // namespace ostro::cuda
