// AddRmsNorm of a row by one block: a kernel that norm.cu and moe_block.cu instantiate, and its
// parts.
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/quantise.h"
#include "ops/norm.h"

namespace ostro::cuda {

constexpr int kNormThreads = 256;
constexpr int kNormSteps = 8;  // packs that a thread keeps at most: 32 registers

// Sum over the block, in the same order whatever the token; every thread gets it.
__device__ inline float norm_block_sum(float x) {
  __shared__ float partial[kNormThreads / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kNormThreads / 32; ++i) sum += partial[i];
  return sum;
}

template <class W, class Y>
struct NormArgs {
  float* residual;
  std::int64_t residual_stride;
  const W* weight;
  Y* y;  // null: nothing is normalised
  std::int64_t y_stride;
  int hidden;
  float eps;
  E4m3Rows rounded;
  bool only_rounded;  // y is not read: what a thread keeps of it need not be stored
};

// What is added to the residual stream: rows of f32, or nothing.
struct AddedRows {
  const float* x;  // null: nothing
  std::int64_t stride;
  static constexpr bool kShortRows = false;  // that a block keeps whole

  __device__ bool any() const { return x != nullptr; }
  // What of row t may be read before the predecessor has ended.
  __device__ void find(std::int64_t) {}
  template <int kPack>
  __device__ Pack<float, kPack> at(std::int64_t t, int i) const {
    return load_pack<kPack>(x + t * stride + i);
  }
  template <int kPack, int kSteps>
  __device__ void load(std::int64_t t, int first, int hidden,
                       Pack<float, kPack> (&added)[kSteps]) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (const int i = first + s * kNormThreads * kPack; i < hidden) added[s] = at<kPack>(t, i);
  }
};

// A thread's part of a row: packs of kPack elements, kNormThreads * kPack apart. What lies beyond
// the last of them is the kernel's to read again.
template <class W, int kPack, int kSteps>
struct NormRow {
  static constexpr int kStride = kNormThreads * kPack;
  static constexpr int kKept = kSteps * kStride;  // elements that a block keeps

  int first, hidden;
  Pack<W, kPack> weight[kSteps];
  Pack<float, kPack> kept[kSteps];

  // The weight comes before the predecessor has ended: no kernel writes it.
  __device__ NormRow(const W* weight_row, int hidden_)
      : first(int(threadIdx.x) * kPack), hidden(hidden_) {
    each([&](int s, int i) {
      if (weight_row) weight[s] = load_pack<kPack>(weight_row + i);
    });
  }

  template <class F>
  __device__ void each(F&& f) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (const int i = first + s * kStride; i < hidden) f(s, i);
  }

  // residual += added; returns the thread's sum of squares. Everything is loaded before anything is
  // stored: a load does not pass a store.
  template <class Added>
  __device__ float add(const Added& added, std::int64_t t, float* residual) {
    each([&](int s, int i) { kept[s] = load_pack<kPack>(residual + i); });
    if (added.any()) {
      Pack<float, kPack> parts[kSteps];
      added.load(t, first, hidden, parts);
      each([&](int s, int i) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) kept[s].v[j] += parts[s].v[j];
        store_pack(residual + i, kept[s]);
      });
    }
    float sum = 0;
    each([&](int s, int) { sum = squares(kept[s], sum); });
    return sum;
  }
  __device__ static float squares(const Pack<float, kPack>& r, float sum) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += r.v[j] * r.v[j];
    return sum;
  }

  // weight * r * scale as it is stored; r becomes what was stored.
  template <class Y>
  __device__ static Pack<Y, kPack> normalised(const Pack<W, kPack>& w, Pack<float, kPack>& r,
                                              float scale) {
    Pack<Y, kPack> out;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      out.v[j] = rounded_to<Y>(widen(w.v[j]) * (r.v[j] * scale));
      r.v[j] = widen(out.v[j]);
    }
    return out;
  }

  // The largest magnitude of what the thread keeps.
  __device__ float most_kept() {
    float most = quant::kE4m3LeastAmax;
    each([&](int s, int) { most = amax(kept[s], most); });
    return most;
  }
  // What the thread keeps as e4m3.
  __device__ void round(std::uint8_t* to, float factor) {
    each([&](int s, int i) {
      *reinterpret_cast<std::uint32_t*>(to + i) = to_e4m3(kept[s], factor);
    });
  }
};

__device__ inline float norm_scale(float sum_of_squares, int hidden, float eps) {
  return 1 / sqrtf(sum_of_squares / float(hidden) + eps);
}

template <class Added, class W, class Y, int kPack, int kSteps, bool kRound>
__global__ void __launch_bounds__(kNormThreads)
    add_rms_norm_kernel(Added added, const NormArgs<W, Y> a) {
  using Row = NormRow<W, kPack, kSteps>;
  const std::int64_t t = blockIdx.x;
  Row row(a.weight, a.hidden);
  added.find(t);
  begin_kernel();

  float* const residual = a.residual + t * a.residual_stride;
  float sum = row.add(added, t, residual);
  // The rest of a row that is longer than a block keeps.
  const auto rest = [&](auto&& f) {
    for (int i = row.first + Row::kKept; i < a.hidden; i += Row::kStride) f(i);
  };
  if constexpr (!Added::kShortRows)
    rest([&](int i) {
      auto r = load_pack<kPack>(residual + i);
      if (added.any()) {
        const auto part = added.template at<kPack>(t, i);
#pragma unroll
        for (int j = 0; j < kPack; ++j) r.v[j] += part.v[j];
        store_pack(residual + i, r);
      }
      sum = Row::squares(r, sum);
    });
  if (!a.y) return;

  const float scale = norm_scale(norm_block_sum(sum), a.hidden, a.eps);
  Y* const y = a.y + t * a.y_stride;
  row.each([&](int s, int i) {
    const auto out = Row::template normalised<Y>(row.weight[s], row.kept[s], scale);
    if (!kRound || !a.only_rounded) store_pack(y + i, out);
  });
  float most = row.most_kept();
  if constexpr (!Added::kShortRows)
    rest([&](int i) {
      auto r = load_pack<kPack>(residual + i);
      store_pack(y + i, Row::template normalised<Y>(load_pack<kPack>(a.weight + i), r, scale));
      most = amax(r, most);
    });

  if constexpr (kRound) {
    most = block_max<kNormThreads>(most);
    const float factor = e4m3_factor(most);
    std::uint8_t* const to = a.rounded.data + t * a.rounded.stride;
    if (threadIdx.x == 0) a.rounded.scale[t] = e4m3_scale(most);
    row.round(to, factor);
    if constexpr (!Added::kShortRows)
      rest([&](int i) {
        const auto own = load_pack<kPack>(y + i);
        Pack<float, kPack> r;
#pragma unroll
        for (int j = 0; j < kPack; ++j) r.v[j] = widen(own.v[j]);
        *reinterpret_cast<std::uint32_t*>(to + i) = to_e4m3(r, factor);
      });
  }
}

template <class W, class Y>
NormArgs<W, Y> norm_args(const ops::AddRmsNorm& op, const E4m3Rows* rounded) {
  return {.residual = static_cast<float*>(op.residual.data),
          .residual_stride = op.residual.row_stride,
          .weight = static_cast<const W*>(op.weight.data),
          .y = static_cast<Y*>(op.y.data),
          .y_stride = op.y.row_stride,
          .hidden = int(op.residual.cols),
          .eps = op.eps,
          .rounded = rounded ? *rounded : E4m3Rows{},
          .only_rounded = rounded && op.for_products};
}

// Elements that a thread of these kernels loads at once, and whether the rows of `op` allow it.
constexpr int kNormPack = 4;
inline bool norm_in_packs(const ops::AddRmsNorm& op) {
  const DType weight = op.weight ? op.weight.dtype : DType::f32;
  const DType out = op.y ? op.y.dtype : DType::f32;
  return op.residual.cols % kNormPack == 0 && rows_aligned(op.residual, 16) &&
         rows_aligned(op.x, 16) && rows_aligned(op.weight, kNormPack * size_of(weight)) &&
         rows_aligned(op.y, kNormPack * size_of(out));
}

}  // namespace ostro::cuda
