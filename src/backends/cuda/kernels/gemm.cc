#include "backends/cuda/kernels/gemm.h"

namespace ostro::cuda {

void gemm_wgmma_bf16(cudaStream_t, const Gemm&);
void gemm_wgmma_f16(cudaStream_t, const Gemm&);
void gemm_tma_bf16(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_tma_f16(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_tma_e4m3(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_persistent_bf16(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_persistent_f16(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_persistent_e4m3(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_persistent_int8(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_persistent_int4(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_tma_int8(cudaStream_t, const Gemm&, const HostWeights&, int processors);
void gemm_tma_int4(cudaStream_t, const Gemm&, const HostWeights&, int processors);

bool tensor_cores_take(const View& x, DType weight_type, bool weights_aligned) {
  constexpr std::uintptr_t kAlign = 16;
  return (x.dtype == DType::bf16 || x.dtype == DType::f16) &&
         (weight_type == x.dtype || is_integer(weight_type)) && weights_aligned &&
         reinterpret_cast<std::uintptr_t>(x.data) % kAlign == 0 &&
         (x.rows <= 1 || std::uintptr_t(x.row_stride) * size_of(x.dtype) % kAlign == 0);
}

void gemm_wgmma(cudaStream_t stream, const Gemm& g) {
  visit_dtype<f16, bf16>(g.x_type, "the tensor-core GEMM", [&]<class T>() {
    if constexpr (std::is_same_v<T, bf16>)
      gemm_wgmma_bf16(stream, g);
    else
      gemm_wgmma_f16(stream, g);
  });
}

void gemm_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  visit_dtype<f16, bf16, f8e4m3, std::int8_t, std::uint8_t>(
      g.w_type, "the GEMM of experts", [&]<class T>() {
        if constexpr (std::is_same_v<T, bf16>)
          gemm_persistent_bf16(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, f16>)
          gemm_persistent_f16(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, std::int8_t>)
          gemm_persistent_int8(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, std::uint8_t>)
          gemm_persistent_int4(stream, g, w, processors);
        else
          gemm_persistent_e4m3(stream, g, w, processors);
      });
}

void gemm_tma(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  visit_dtype<f16, bf16, f8e4m3, std::int8_t, std::uint8_t>(
      g.w_type, "the GEMM of prompts", [&]<class T>() {
        if constexpr (std::is_same_v<T, bf16>)
          gemm_tma_bf16(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, f16>)
          gemm_tma_f16(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, std::int8_t>)
          gemm_tma_int8(stream, g, w, processors);
        else if constexpr (std::is_same_v<T, std::uint8_t>)
          gemm_tma_int4(stream, g, w, processors);
        else
          gemm_tma_e4m3(stream, g, w, processors);
      });
}

}  // namespace ostro::cuda
