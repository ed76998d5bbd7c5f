// Reads and writes host matrices of any float dtype, so that a reference reads like its formula.
#pragma once

#include <algorithm>
#include <vector>

#include "quant/e4m3.h"
#include "quant/int4.h"
#include "quant/weight.h"

namespace ostro::ops {

// A copy of a host matrix or weight, widened (decoded) to float: m(row, col).
class HostMatrix {
 public:
  explicit HostMatrix(const View& v) : cols_(v.cols), values_(std::size_t(v.rows * v.cols)) {
    for (std::int64_t r = 0; r < v.rows; ++r)
      convert(row_of(v, r), v.dtype, values_.data() + r * cols_, DType::f32, std::size_t(cols_));
  }
  explicit HostMatrix(const quant::Weight& w) : cols_(w.k()), values_(std::size_t(w.n() * w.k())) {
    for (std::int64_t r = 0; r < w.n(); ++r) decode(w, r, values_.data() + r * cols_);
  }

  // Each row as Activations::e4m3_per_token rounds it, by `group` columns.
  void round_to_e4m3(std::int64_t group) {
    for (std::int64_t i = 0; cols_ > 0 && i < std::int64_t(values_.size()); i += cols_)
      quant::e4m3_round(values_.data() + i, cols_, group);
  }

  const float* row(std::int64_t r) const { return values_.data() + r * cols_; }
  float operator()(std::int64_t r, std::int64_t c) const { return row(r)[c]; }

 private:
  // Row r of a weight, in its format.
  static void decode(const quant::Weight& w, std::int64_t r, float* to) {
    if (w.is_int4()) {
      for (std::int64_t g = 0; g < w.scale.cols; ++g)
        quant::int4_decode(w.data.row<const std::uint8_t>(r) + g * quant::kInt4GroupBytes,
                           w.scale.row<const bf16>(r)[g], to + g * quant::kInt4Group);
      return;
    }
    if (w.data.dtype == DType::i8)
      std::copy_n(w.data.row<const std::int8_t>(r), w.k(), to);
    else
      convert(row_of(w.data, r), w.data.dtype, to, DType::f32, std::size_t(w.k()));
    for (std::int64_t k = 0; w.scale && k < w.k(); ++k) to[k] *= w.scale.row<const float>(0)[r];
  }

  static const char* row_of(const View& v, std::int64_t r) {
    OSTRO_CHECK(v.device == Device::cpu, "a reference reads host memory");
    return static_cast<const char*>(v.data) + r * v.row_stride * std::int64_t(size_of(v.dtype));
  }

  std::int64_t cols_;
  std::vector<float> values_;
};

// v(r, c) = value, rounded to float and then to v's dtype.
inline void store(const View& v, std::int64_t r, std::int64_t c, double value) {
  visit_dtype<float, f16, bf16, f8e4m3>(v.dtype, "store", [&]<class T>() {
    v.row<T>(r)[c] = from_float<T>(static_cast<float>(value));
  });
}

// What store() would leave in a matrix of `dtype`, widened again.
inline float rounded(double value, DType dtype) {
  float result = 0;
  visit_dtype<float, f16, bf16, f8e4m3>(dtype, "rounded", [&]<class T>() {
    result = to_float(from_float<T>(static_cast<float>(value)));
  });
  return result;
}

// sum_i a[i] * b[i], i < n, in f64: exact products, in order.
inline double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

}  // namespace ostro::ops
