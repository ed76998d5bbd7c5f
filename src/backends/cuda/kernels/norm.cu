// ops::AddRmsNorm on CUDA. The contract is in ops/norm.h.
//
// Grid:     one block for each token. Threads: 256. A row of up to 8192 elements stays in registers
//           between the sum of squares and the scaling; of a longer one the rest is read again.
// Rounded:  y also as e4m3 with a scale a row, for the products that read it: a third pass over the
//           registers.
// Traffic:  reads x and residual, writes residual and y: 14 bytes an element with y in bf16, 15 if
//           rounded.
// Bound by: latency of two passes up to some hundred tokens, then memory.
// Floor on an H100 (3.15 TB/s): 14 * tokens * hidden / 3.15e12 s; 37 us at 2048 tokens of 4096.
// Measured (cuda_kernels_bench): on an H200 4.3 us at 1 token, 4.5 at 64, 5.0 at 512. On an H100,
//           before the loads stood in front of the stores, 3.1 us at 1 token, 4 at 128, 43 at 2048
//           (2.7 TB/s, 87 %).
#include "backends/cuda/kernels/norm.cuh"
#include "backends/cuda/kernels/rows.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {

void add_rms_norm(cudaStream_t stream, const ops::AddRmsNorm& op, const E4m3Rows* rounded) {
  const DType weight = op.weight ? op.weight.dtype : DType::f32;
  const DType out = op.y ? op.y.dtype : DType::f32;
  const bool packs = norm_in_packs(op);
  const AddedRows added{.x = static_cast<const float*>(op.x.data), .stride = op.x.row_stride};
  visit_dtype<float, f16, bf16>(weight, "AddRmsNorm on CUDA", [&]<class W>() {
    visit_dtype<float, f16, bf16>(out, "AddRmsNorm on CUDA", [&]<class Y>() {
      using V = device_t<W>;
      using U = device_t<Y>;
      const auto kernel = !packs ? add_rms_norm_kernel<AddedRows, V, U, 1, kNormSteps, false>
                          : rounded
                              ? add_rms_norm_kernel<AddedRows, V, U, kNormPack, kNormSteps, true>
                              : add_rms_norm_kernel<AddedRows, V, U, kNormPack, kNormSteps, false>;
      launch(stream, {.blocks = op.residual.rows, .threads = kNormThreads}, kernel, added,
             norm_args<V, U>(op, rounded));
    });
  });
  if (rounded && !packs) quantise_rows(stream, op.y, *rounded);
}

}  // namespace ostro::cuda
