// Reads and writes host matrices of any float dtype, so that a reference reads like its formula.
#pragma once

#include <vector>

#include "quant/weight.h"

namespace ostro::ops {

// A copy of a host matrix or weight, widened (decoded) to float: m(row, col).
class HostMatrix {
 public:
  explicit HostMatrix(const View& v) : cols_(v.cols), values_(std::size_t(v.rows * v.cols)) {
    OSTRO_CHECK(v.device == Device::cpu, "a reference reads host memory");
    for (std::int64_t r = 0; r < v.rows; ++r)
      convert(static_cast<const char*>(v.data) + r * v.row_stride * std::int64_t(size_of(v.dtype)),
              v.dtype, values_.data() + r * cols_, DType::f32, std::size_t(cols_));
  }
  explicit HostMatrix(const quant::Weight& w) : HostMatrix(w.data) {}

  const float* row(std::int64_t r) const { return values_.data() + r * cols_; }
  float operator()(std::int64_t r, std::int64_t c) const { return row(r)[c]; }

 private:
  std::int64_t cols_;
  std::vector<float> values_;
};

// v(r, c) = value, rounded to float and then to v's dtype.
inline void store(const View& v, std::int64_t r, std::int64_t c, double value) {
  visit_dtype<float, f16, bf16>(v.dtype, "store", [&]<class T>() {
    v.row<T>(r)[c] = from_float<T>(static_cast<float>(value));
  });
}

// What store() would leave in a matrix of `dtype`, widened again.
inline float rounded(double value, DType dtype) {
  float result = 0;
  visit_dtype<float, f16, bf16>(dtype, "rounded", [&]<class T>() {
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
