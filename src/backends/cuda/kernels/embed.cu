// ops::Embed and ops::GatherRows on CUDA. The contracts are in ops/embed.h.
//
// Grid:     one block for each row of y. Threads: 128, each moving packs of 16 bytes of y where the
//           rows are aligned, else single elements.
// Traffic:  reads a row and writes it: 2 + 4 bytes an element of a bf16 table.
// Bound by: launch latency up to some hundred rows, then memory.
// Floor on an H100 (3.15 TB/s): 6 * tokens * hidden / 3.15e12 s; 16 us at 2048 rows of 4096. Once a
//           step; not measured.
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/rows.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 128;

template <class T, int kPack>
__global__ void embed_kernel(const std::int32_t* ids, const T* table, std::int64_t table_rows,
                             std::int64_t table_stride, std::int64_t first_row, float* y,
                             std::int64_t y_stride, int hidden) {
  begin_kernel();
  const std::int64_t t = blockIdx.x;
  const std::int64_t row = ids[t] - first_row;
  const bool here = 0 <= row && row < table_rows;
  const T* from = table + (here ? row * table_stride : 0);
  float* to = y + t * y_stride;
  for (int i = int(threadIdx.x) * kPack; i < hidden; i += kThreads * kPack) {
    Pack<float, kPack> out{};
    if (here) {
      const auto in = load_pack<kPack>(from + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) out.v[j] = widen(in.v[j]);
    }
    store_pack(to + i, out);
  }
}

template <class Word>
__global__ void gather_rows_kernel(const char* x, std::int64_t x_pitch, const std::int32_t* rows,
                                   char* y, std::int64_t y_pitch, std::int64_t words) {
  begin_kernel();
  const std::int64_t i = blockIdx.x;
  const auto* from = reinterpret_cast<const Word*>(x + rows[i] * x_pitch);
  auto* to = reinterpret_cast<Word*>(y + i * y_pitch);
  for (std::int64_t w = threadIdx.x; w < words; w += kThreads) to[w] = from[w];
}

}  // namespace

void embed(cudaStream_t stream, const ops::Embed& op) {
  constexpr int kPack = 4;
  const bool packs = op.y.cols % kPack == 0 && rows_aligned(op.y, 16) &&
                     rows_aligned(op.table, kPack * size_of(op.table.dtype));
  visit_dtype<float, f16, bf16>(op.table.dtype, "Embed on CUDA", [&]<class T>() {
    using E = device_t<T>;
    launch(stream, {.blocks = op.y.rows, .threads = kThreads},
           packs ? embed_kernel<E, kPack> : embed_kernel<E, 1>,
           static_cast<const std::int32_t*>(op.ids.data), static_cast<const E*>(op.table.data),
           op.table.rows, op.table.row_stride, op.first_row, static_cast<float*>(op.y.data),
           op.y.row_stride, int(op.y.cols));
  });
}

void gather_rows(cudaStream_t stream, const ops::GatherRows& op) {
  const std::int64_t size = std::int64_t(size_of(op.x.dtype));
  const std::int64_t bytes = op.x.cols * size;
  const bool packs = bytes % 16 == 0 && rows_aligned(op.x, 16) && rows_aligned(op.y, 16);
  launch(stream, {.blocks = op.y.rows, .threads = kThreads},
         packs ? gather_rows_kernel<uint4> : gather_rows_kernel<char>,
         static_cast<const char*>(op.x.data), op.x.row_stride * size,
         static_cast<const std::int32_t*>(op.rows.data), static_cast<char*>(op.y.data),
         op.y.row_stride * size, packs ? bytes / 16 : bytes);
}

}  // namespace ostro::cuda
