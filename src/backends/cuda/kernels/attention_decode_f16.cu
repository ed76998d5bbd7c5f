// attention_decode.cuh for f16.
#include "backends/cuda/kernels/attention_decode.cuh"

namespace ostro::cuda {

void attention_decode_f16(cudaStream_t stream, const AttentionArgs& args, int blocks) {
  attention_decode_of<device_t<f16>, device_t<f16>>(stream, args, blocks);
}

}  // namespace ostro::cuda
