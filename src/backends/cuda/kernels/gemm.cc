#include "backends/cuda/kernels/gemm.h"

namespace ostro::cuda {

void gemm_wgmma_bf16(cudaStream_t, const Gemm&);
void gemm_wgmma_f16(cudaStream_t, const Gemm&);

bool tensor_cores_take(const View& x, DType weight_type, bool weights_aligned) {
  constexpr std::uintptr_t kAlign = 16;
  return (x.dtype == DType::bf16 || x.dtype == DType::f16) && weight_type == x.dtype &&
         weights_aligned && reinterpret_cast<std::uintptr_t>(x.data) % kAlign == 0 &&
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

}  // namespace ostro::cuda
