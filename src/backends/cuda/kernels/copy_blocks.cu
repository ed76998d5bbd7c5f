// ops::CopyBlocks on CUDA. The contract is in ops/copy_blocks.h.
//
// Grid:     one block for each copy and plane. Threads: 256, each moving packs of 16 bytes where
// the
//           rows are multiples of them, else single bytes. Rows without gaps are copied as one.
// Traffic:  reads and writes 2 * layers * kv_heads * block_tokens * head_dim elements a copy: 16
// MiB
//           of 8x7B in bf16 with blocks of 64 tokens.
// Bound by: memory; launch latency for a few copies.
// Floor on an H100 (3.15 TB/s): 5 us a copy of 8x7B. At most one copy a beam and step; not
// measured.
#include "backends/cuda/kernels/copy_blocks.h"

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;

template <class Word>
__global__ void copy_blocks_kernel(Word* kv, std::int64_t pitch, const std::int32_t* copies,
                                   std::int64_t copies_stride, int planes, std::int64_t blocks,
                                   int block_rows, int rows, std::int64_t words) {
  begin_kernel();
  const std::int32_t* pair = copies + blockIdx.x / planes * copies_stride;
  const std::int64_t plane = blockIdx.x % planes * blocks;
  const Word* from = kv + (plane + pair[0]) * block_rows * pitch;
  Word* to = kv + (plane + pair[1]) * block_rows * pitch;
  for (int r = 0; r < rows; ++r)
    for (std::int64_t w = threadIdx.x; w < words; w += kThreads)
      to[r * pitch + w] = from[r * pitch + w];
}

}  // namespace

void copy_blocks(cudaStream_t stream, const ops::CopyBlocks& op) {
  const auto size = std::int64_t(size_of(op.kv.dtype));
  const std::int64_t rows = op.kv.contiguous() ? 1 : op.block_rows;
  const std::int64_t bytes = op.block_rows / rows * op.kv.cols * size;
  const bool packs = bytes % 16 == 0 && op.kv.cols * size % 16 == 0 && rows_aligned(op.kv, 16);
  const auto start = [&]<class Word>(Word* kv) {
    launch(stream, {.blocks = op.copies.rows * op.planes, .threads = kThreads},
           copy_blocks_kernel<Word>, kv, op.kv.row_stride * size / std::int64_t(sizeof(Word)),
           static_cast<const std::int32_t*>(op.copies.data), op.copies.row_stride, int(op.planes),
           op.blocks(), int(op.block_rows), int(rows), bytes / std::int64_t(sizeof(Word)));
  };
  if (packs)
    start(static_cast<uint4*>(op.kv.data));
  else
    start(static_cast<char*>(op.kv.data));
}

}  // namespace ostro::cuda
