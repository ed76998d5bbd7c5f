// Activations as e4m3, for products with e4m3 and int4 weights.
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

// Rounds the rows of x (f32, f16 or bf16), one scale a row, by quant/e4m3.h's formulas. For
// products with int4 weights the columns of every 16 change places as those of a word of int4 stand
// in the operand of wgmma (quant/int4.h): columns 2 t, 2 t + 8, 2 t + 1, 2 t + 9 go to 4 t .. 4 t +
// 3; k is then a multiple of 128.
enum class E4m3Order { columns, int4 };
void quantise_rows(cudaStream_t, const View& x, const E4m3Rows& out,
                   E4m3Order order = E4m3Order::columns);

}  // namespace ostro::cuda
