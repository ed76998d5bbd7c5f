// A weight matrix as kernels see it: its elements and, for quantised formats, their scales.
#pragma once

#include <string>

#include "tensor/view.h"

namespace ostro::quant {

// W [n, k]: row i holds the weights of output i, so y = x W^T.
//
//   format   data                 scale
//   float    f32|f16|bf16 [n, k]  none
//   e4m3     f8e4m3 [n, k]        f32 [1, n]: y[i] = scale[i] * sum_k x[k] data[i, k]; no NaN
//   int8     i8 [n, k]            f32 [1, n], the same (quant/int8.h)
//   int4     u8 [n, k / 2]        bf16 [n, k / 128]: 128 columns lie in 64 bytes in the order of
//                                 quant/int4.h and share a scale; k is a multiple of 128
//
// A new format (docs/adding_a_weight_format.md) adds a row here, its encoder and its decoder.
struct Weight {
  View data;
  View scale;

  std::int64_t n() const { return data.rows; }
  std::int64_t k() const { return is_int4() ? 2 * data.cols : data.cols; }
  bool is_int4() const { return data.dtype == DType::u8; }
  explicit operator bool() const { return bool(data); }
};

}  // namespace ostro::quant
