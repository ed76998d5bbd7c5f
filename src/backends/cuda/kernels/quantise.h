// Activations as e4m3, for products with e4m3 weights.
#pragma once

#include <cuda_runtime.h>

#include "tensor/view.h"

namespace ostro::cuda {

// A matrix [rows, k] as f8e4m3, rows every `stride` bytes (a multiple of 16), and its scales:
// column c of row r is data[r, c] * scale[c / group * scale_stride + r]. A scale_stride of 0: one
// scale a row.
struct E4m3Rows {
  std::uint8_t* data;
  std::int64_t stride;
  float* scale;
  std::int64_t scale_stride;
};

// Rounds the rows of x (f32, f16 or bf16), one scale a row, by quant/e4m3.h's formulas.
void quantise_rows(cudaStream_t, const View& x, const E4m3Rows& out);

}  // namespace ostro::cuda
