// Descriptions of matrices for the bulk copy engine (ptx/tma.cuh).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace ostro::cuda {

// A byte matrix [rows, cols], rows every `stride` bytes, in boxes of box_rows x 128 bytes, whose
// 16-byte chunks are swizzled as wgmma reads them (ptx/wgmma.cuh). `data` and `stride` are
// multiples of 16.
CUtensorMap swizzled_map(const void* data, std::int64_t rows, std::int64_t cols,
                         std::int64_t stride, int box_rows);

// The same in boxes of box_rows x box_cols bytes, rows one after the other.
CUtensorMap packed_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                       int box_cols, int box_rows);

}  // namespace ostro::cuda
