// ops::Draw on CUDA. The contract is in ops/draw.h.
//
// Grid:     blocks of 256 threads, each for up to 4096 elements of one row.
// Traffic:  writes y; the quantiles stay in L1 and L2.
// Bound by: integer arithmetic. Only at start: not measured.
#include "backends/cuda/kernels/draw.h"

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 4096;  // of a block

__device__ std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class T>
__global__ void draw_kernel(const T* quantiles, std::uint64_t key, std::int64_t first_row,
                            std::int64_t first_col, std::int64_t matrix_cols, T* y,
                            std::int64_t y_stride, std::int64_t cols, int blocks_a_row) {
  begin_kernel();
  const std::int64_t row = blockIdx.x / blocks_a_row;
  const std::int64_t begin = std::int64_t(blockIdx.x % blocks_a_row) * kElements;
  const std::int64_t end = min(cols, begin + kElements);
  for (std::int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    const auto i = std::uint64_t((first_row + row) * matrix_cols + first_col + c);
    const std::uint64_t bits = mix(key + i / 4 * 0x9e3779b97f4a7c15u);
    y[row * y_stride + c] = quantiles[(bits >> (16 * (i % 4))) & 0xffff];
  }
}

}  // namespace

void draw(cudaStream_t stream, const ops::Draw& op) {
  const std::int64_t blocks_a_row = ceil_div<std::int64_t>(op.y.cols, kElements);
  const auto start = [&]<class T>() {
    launch(stream, {.blocks = op.y.rows * blocks_a_row, .threads = kThreads}, draw_kernel<T>,
           static_cast<const T*>(op.quantiles.data), op.key, op.first_row, op.first_col,
           op.matrix_cols, static_cast<T*>(op.y.data), op.y.row_stride, op.y.cols,
           int(blocks_a_row));
  };
  switch (size_of(op.y.dtype)) {
    case 1:
      return start.operator()<std::uint8_t>();
    case 2:
      return start.operator()<std::uint16_t>();
    default:
      return start.operator()<std::uint32_t>();
  }
}

}  // namespace ostro::cuda
