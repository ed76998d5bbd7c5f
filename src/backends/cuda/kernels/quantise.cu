// Rows of activations to e4m3.
//
// Grid:     one block for each row. Threads: 256. A row of up to 8192 elements stays in registers
//           between its largest magnitude and the rounding; of a longer one the rest is read again.
// Traffic:  reads x once, writes a byte an element: 3 bytes an element of bf16.
// Bound by: latency up to some hundred rows, then memory.
// Floor on an H100 (3.15 TB/s): 3 * rows * k / 3.15e12 s; 8 us at 2048 rows of 4096. Not
//           measured.
#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/quantise.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 8;  // packs that a thread keeps
constexpr int kPack = 4;

// Four columns of each lane, in the order of E4m3Order::int4. All lanes of the warp take part.
__device__ inline std::uint32_t in_int4_order(std::uint32_t four) {
  const int lane = int(threadIdx.x) % 32, from = lane / 4 * 4 + lane % 4 / 2;
  const std::uint32_t low = __shfl_sync(~0u, four, from), high = __shfl_sync(~0u, four, from + 2);
  return __byte_perm(low, high, lane % 2 == 0 ? 0x5140 : 0x7362);
}

template <class X, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    quantise_rows_kernel(const X* x, std::int64_t x_stride, int k, E4m3Rows out, E4m3Order order) {
  begin_kernel();
  const std::int64_t row = blockIdx.x;
  x += row * x_stride;
  std::uint8_t* const to = out.data + row * out.stride;

  const auto load = [&](int i) {
    Pack<float, kPack> values{};
    if constexpr (kPacked) {
      const auto pack = load_pack<kPack>(x + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) values.v[j] = widen(pack.v[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j)
        if (i + j < k) values.v[j] = widen(x[i + j]);
    }
    return values;
  };
  constexpr int kStride = kThreads * kPack;
  const int first = int(threadIdx.x) * kPack;
  Pack<float, kPack> kept[kSteps];
  float most = quant::kE4m3LeastAmax;
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (first + s * kStride < k) {
      kept[s] = load(first + s * kStride);
      most = amax(kept[s], most);
    }
  for (int i = first + kSteps * kStride; i < k; i += kStride) most = amax(load(i), most);
  most = block_max<kThreads>(most);
  const float factor = e4m3_factor(most);
  if (threadIdx.x == 0) out.scale[row] = e4m3_scale(most);

  // Rows are padded to 16 bytes, so a pack may pass the end of one.
  const auto store = [&](int i, const Pack<float, kPack>& values) {
    const std::uint32_t four = to_e4m3(values, factor);
    *reinterpret_cast<std::uint32_t*>(to + i) =
        order == E4m3Order::int4 ? in_int4_order(four) : four;
  };
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    if (first + s * kStride < k) store(first + s * kStride, kept[s]);
  for (int i = first + kSteps * kStride; i < k; i += kStride) store(i, load(i));
}

}  // namespace

void quantise_rows(cudaStream_t stream, const View& x, const E4m3Rows& out, E4m3Order order) {
  const bool packs = x.cols % kPack == 0 && rows_aligned(x, kPack * size_of(x.dtype));
  visit_dtype<float, f16, bf16>(x.dtype, "e4m3 activations on CUDA", [&]<class X>() {
    launch(
        stream, {.blocks = x.rows, .threads = kThreads},
        packs ? quantise_rows_kernel<device_t<X>, true> : quantise_rows_kernel<device_t<X>, false>,
        static_cast<const device_t<X>*>(x.data), x.row_stride, int(x.cols), out, order);
  });
}

}  // namespace ostro::cuda
