// attention_decode.cuh for bf16.
#include "backends/cuda/kernels/attention_decode.cuh"

namespace ostro::cuda {

void attention_decode_bf16(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  attention_decode_of<device_t<bf16>, device_t<bf16>>(stream, args, blocks);
}

}  // namespace ostro::cuda
