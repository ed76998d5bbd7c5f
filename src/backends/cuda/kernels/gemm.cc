#include "backends/cuda/kernels/gemm.h"

namespace ostro::cuda {

void gemm_wgmma_bf16(cudaStream_t, const Gemm&);
void gemm_wgmma_f16(cudaStream_t, const Gemm&);
// A kernel whose weights the host knows, for one type of them.
using TypedGemm = void(cudaStream_t, const Gemm&, const HostWeights&, int processors);
TypedGemm gemm_tma_f16, gemm_tma_bf16, gemm_tma_e4m3, gemm_tma_int8, gemm_tma_int4, gemm_int4_e4m3;
TypedGemm gemm_persistent_f16, gemm_persistent_bf16, gemm_persistent_e4m3, gemm_persistent_int8,
    gemm_persistent_int4;

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

namespace {

struct TypedGemms {
  TypedGemm &f16, &bf16, &e4m3, &int8, &int4;
};

// That for weights of a type.
TypedGemm& gemm_of(DType weights, const char* who, const TypedGemms& of) {
  TypedGemm* gemm = nullptr;
  visit_dtype<f16, bf16, f8e4m3, std::int8_t, std::uint8_t>(weights, who, [&]<class T>() {
    gemm = std::is_same_v<T, f16>           ? of.f16
           : std::is_same_v<T, bf16>        ? of.bf16
           : std::is_same_v<T, f8e4m3>      ? of.e4m3
           : std::is_same_v<T, std::int8_t> ? of.int8
                                            : of.int4;
  });
  return *gemm;
}

}  // namespace

void gemm_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  TypedGemm& kernel = gemm_of(g.w_type, "the GEMM of experts",
                              {gemm_persistent_f16, gemm_persistent_bf16, gemm_persistent_e4m3,
                               gemm_persistent_int8, gemm_persistent_int4});
  kernel(stream, g, w, processors);
}

void gemm_tma(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  TypedGemm& int4 = g.x_type == DType::f8e4m3 ? gemm_int4_e4m3 : gemm_tma_int4;
  TypedGemm& kernel = gemm_of(g.w_type, "the GEMM of prompts",
                              {gemm_tma_f16, gemm_tma_bf16, gemm_tma_e4m3, gemm_tma_int8, int4});
  kernel(stream, g, w, processors);
}

}  // namespace ostro::cuda
