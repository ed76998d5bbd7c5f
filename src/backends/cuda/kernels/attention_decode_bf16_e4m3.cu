// attention_decode.cuh for bf16 on an e4m3 cache.
#include "backends/cuda/kernels/attention_decode.cuh"

namespace ostro::cuda {

void attention_decode_bf16_e4m3(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  attention_decode_of<device_t<bf16>, device_t<f8e4m3>>(stream, args, blocks);
}

}  // namespace ostro::cuda
