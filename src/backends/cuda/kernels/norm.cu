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
// Measured (H100 80 GB HBM3, cuda_kernels_bench): 3.1 us at 1 token, 4 us at 128, 43 us at 2048
//           (2.7 TB/s, 87 %).
#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/rows.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 8;  // packs that a thread keeps: 32 registers

// Sum over the block, in the same order whatever the token; every thread gets it.
__device__ float block_sum(float x) {
  __shared__ float partial[kThreads / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
  return sum;
}

template <class W, class Y, int kPack, bool kRound>
__global__ void __launch_bounds__(kThreads)
    add_rms_norm_kernel(const float* x, std::int64_t x_stride, float* residual,
                        std::int64_t residual_stride, const W* weight, Y* y, std::int64_t y_stride,
                        int hidden, float eps, E4m3Rows rounded) {
  begin_kernel();
  const std::int64_t t = blockIdx.x;
  float* const row = residual + t * residual_stride;
  if (x) x += t * x_stride;

  const auto added = [&](int i) {
    auto r = load_pack<kPack>(row + i);
    if (x) {
      const auto b = load_pack<kPack>(x + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) r.v[j] += b.v[j];
      store_pack(row + i, r);
    }
    return r;
  };
  float sum = 0;
  const auto add_squares = [&](const Pack<float, kPack>& r) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += r.v[j] * r.v[j];
  };
  constexpr int kStride = kThreads * kPack;
  const int first = int(threadIdx.x) * kPack;
  Pack<float, kPack> kept[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (first + s * kStride < hidden) {
      kept[s] = added(first + s * kStride);
      add_squares(kept[s]);
    }
  for (int i = first + kSteps * kStride; i < hidden; i += kStride) add_squares(added(i));
  if (!y) return;

  const float scale = 1 / sqrtf(block_sum(sum) / float(hidden) + eps);
  y += t * y_stride;
  const auto write = [&](int i, Pack<float, kPack>& r) {
    const auto w = load_pack<kPack>(weight + i);
    Pack<Y, kPack> out;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      out.v[j] = rounded_to<Y>(widen(w.v[j]) * (r.v[j] * scale));
      r.v[j] = widen(out.v[j]);
    }
    store_pack(y + i, out);
  };
  float most = quant::kE4m3LeastAmax;
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (first + s * kStride < hidden) {
      write(first + s * kStride, kept[s]);
      if constexpr (kRound) most = amax(kept[s], most);
    }
  for (int i = first + kSteps * kStride; i < hidden; i += kStride) {
    auto r = load_pack<kPack>(row + i);
    write(i, r);
    if constexpr (kRound) most = amax(r, most);
  }

  if constexpr (kRound) {
    most = block_max<kThreads>(most);
    const float factor = e4m3_factor(most);
    std::uint8_t* const to = rounded.data + t * rounded.stride;
    const auto round = [&](int i, const Pack<float, kPack>& r) {
      *reinterpret_cast<std::uint32_t*>(to + i) = to_e4m3(r, factor);
    };
    if (threadIdx.x == 0) rounded.scale[t] = e4m3_scale(most);
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kStride < hidden) round(first + s * kStride, kept[s]);
    for (int i = first + kSteps * kStride; i < hidden; i += kStride) {
      const auto own = load_pack<kPack>(y + i);
      Pack<float, kPack> r;
#pragma unroll
      for (int j = 0; j < kPack; ++j) r.v[j] = widen(own.v[j]);
      round(i, r);
    }
  }
}

}  // namespace

void add_rms_norm(cudaStream_t stream, const ops::AddRmsNorm& op, const E4m3Rows* rounded) {
  constexpr int kPack = 4;
  const DType weight = op.weight ? op.weight.dtype : DType::f32;
  const DType out = op.y ? op.y.dtype : DType::f32;
  const bool packs = op.residual.cols % kPack == 0 && rows_aligned(op.residual, 16) &&
                     rows_aligned(op.x, 16) && rows_aligned(op.weight, kPack * size_of(weight)) &&
                     rows_aligned(op.y, kPack * size_of(out));
  visit_dtype<float, f16, bf16>(weight, "AddRmsNorm on CUDA", [&]<class W>() {
    visit_dtype<float, f16, bf16>(out, "AddRmsNorm on CUDA", [&]<class Y>() {
      const auto kernel = !packs    ? add_rms_norm_kernel<device_t<W>, device_t<Y>, 1, false>
                          : rounded ? add_rms_norm_kernel<device_t<W>, device_t<Y>, kPack, true>
                                    : add_rms_norm_kernel<device_t<W>, device_t<Y>, kPack, false>;
      launch(stream, {.blocks = op.residual.rows, .threads = kThreads}, kernel,
             static_cast<const float*>(op.x.data), op.x.row_stride,
             static_cast<float*>(op.residual.data), op.residual.row_stride,
             static_cast<const device_t<W>*>(op.weight.data), static_cast<device_t<Y>*>(op.y.data),
             op.y.row_stride, int(op.residual.cols), op.eps, rounded ? *rounded : E4m3Rows{});
    });
  });
  if (rounded && !packs) quantise_rows(stream, op.y, *rounded);
}

}  // namespace ostro::cuda
