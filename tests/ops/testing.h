// What the tests of the ops share: guarded matrices, the backends of this build, error bounds.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/host_matrix.h"

namespace ostro::ops::testing {

inline const std::vector<DType> kFloats = {DType::f32, DType::f16, DType::bf16};
// Of weights; u8: int4, for which k is a multiple of 128.
inline const std::vector<DType> kWeightTypes = {DType::f32,    DType::f16, DType::bf16,
                                                DType::f8e4m3, DType::i8,  DType::u8};

// A deterministic number in [-sqrt(3), sqrt(3)): mean 0, variance 1 (splitmix64).
inline float noise(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return (float(z >> 40) * 0x1p-23f - 1) * 1.7320508f;
}

// A host matrix whose every byte is 0xff at first: NaN in each float type, -1 in i32. So an output
// that is not written, and an input read beyond its rows, shows in the result. `pad` elements
// follow each row and 64 bytes surround the whole; nobody may change these.
class Matrix {
 public:
  Matrix(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t pad = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(cols + pad),
        bytes_(std::size_t(rows * stride_) * size_of(dtype) + 2 * kGuardBytes, kPoison) {}

  View view() { return {at_row(0), dtype_, Device::cpu, rows_, cols_, stride_}; }
  quant::Weight weight() { return {.data = view(), .scale = {}}; }

  DType dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }

  float operator()(std::int64_t r, std::int64_t c) const {
    float value = 0;
    if (dtype_ == DType::i32) return float(integer(r, c));
    convert(at_row(r) + std::size_t(c) * size_of(dtype_), dtype_, &value, DType::f32, 1);
    return value;
  }
  std::int32_t integer(std::int64_t r, std::int64_t c) const {
    std::int32_t value;
    std::memcpy(&value, at_row(r) + c * 4, 4);
    return value;
  }
  void set(std::int64_t r, std::int64_t c, float value) {
    convert(&value, DType::f32, at_row(r) + std::size_t(c) * size_of(dtype_), dtype_, 1);
  }
  void set_integer(std::int64_t r, std::int64_t c, std::int32_t value) {
    std::memcpy(at_row(r) + c * 4, &value, 4);
  }

  // Random elements of variance scale^2 (bytes for the integer types).
  Matrix& random(std::uint64_t seed, float scale = 1) {
    std::vector<float> row(std::size_t(cols_), 0.0f);
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < cols_; ++c)
        row[std::size_t(c)] = scale * noise(seed, std::uint64_t(r * cols_ + c));
      if (is_float(dtype_) || dtype_ == DType::f8e4m3)
        convert(row.data(), DType::f32, at_row(r), dtype_, row.size());
      else
        for (std::size_t i = 0; i < row_bytes(); ++i)
          at_row(r)[i] = char(100 * noise(seed, std::uint64_t(r) * row_bytes() + i));
    }
    return *this;
  }
  Matrix& integers(const std::vector<std::int32_t>& values) {
    OSTRO_CHECK(std::int64_t(values.size()) == rows_ * cols_, values.size(), " values");
    for (std::int64_t i = 0; i < rows_ * cols_; ++i)
      set_integer(i / cols_, i % cols_, values[std::size_t(i)]);
    return *this;
  }
  Matrix& floats(const std::vector<float>& values) {
    OSTRO_CHECK(std::int64_t(values.size()) == rows_ * cols_, values.size(), " values");
    for (std::int64_t i = 0; i < rows_ * cols_; ++i)
      set(i / cols_, i % cols_, values[std::size_t(i)]);
    return *this;
  }

  // The bytes of one row, for comparisons bit for bit.
  std::string row_bits(std::int64_t r) const { return {at_row(r), row_bytes()}; }

  // The Euclidean norm of a row.
  double norm(std::int64_t r) const {
    double sum = 0;
    for (std::int64_t c = 0; c < cols_; ++c) sum += double((*this)(r, c)) * (*this)(r, c);
    return std::sqrt(sum);
  }

  // Nothing outside the rows has changed.
  bool guards_intact() const {
    const auto untouched = [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        if (bytes_[i] != kPoison) return false;
      return true;
    };
    const std::size_t step = std::size_t(stride_) * size_of(dtype_);
    for (std::size_t r = 0; r < std::size_t(rows_); ++r)
      if (!untouched(kGuardBytes + r * step + row_bytes(), kGuardBytes + (r + 1) * step))
        return false;
    return untouched(0, kGuardBytes) && untouched(bytes_.size() - kGuardBytes, bytes_.size());
  }

 private:
  static constexpr std::size_t kGuardBytes = 64;
  static constexpr char kPoison = char(0xff);

  const char* at_row(std::int64_t r) const {
    return bytes_.data() + kGuardBytes + std::size_t(r * stride_) * size_of(dtype_);
  }
  char* at_row(std::int64_t r) { return const_cast<char*>(std::as_const(*this).at_row(r)); }
  std::size_t row_bytes() const { return std::size_t(cols_) * size_of(dtype_); }

  DType dtype_;
  std::int64_t rows_, cols_, stride_;
  std::vector<char> bytes_;
};

// A weight [n, k] of about the given deviation in any format. The numbers of quantised ones have a
// deviation of 30 (int4: 4.6), with scales for rows or groups that are all different.
class TestWeight {
 public:
  TestWeight(DType dtype, std::int64_t n, std::int64_t k, std::int64_t pad, std::uint64_t seed,
             float deviation)
      : is_int4_(dtype == DType::u8),
        data_(dtype, n, is_int4_ ? k / 2 : k, pad),
        scale_(is_int4_ ? Matrix(DType::bf16, n, k / quant::kInt4Group, 1)
                        : Matrix(DType::f32, 1, is_float(dtype) ? 0 : n)),
        decoded_(DType::f32, n, k) {
    fill(seed, deviation);
    const float own = is_int4_ ? 4.6f : 30.0f;
    for (std::int64_t r = 0; r < scale_.rows(); ++r)
      for (std::int64_t c = 0; c < scale_.cols(); ++c)
        scale_.set(
            r, c,
            deviation / own * (1 + 0.25f * noise(seed, std::uint64_t(r * scale_.cols() + c))));
    const HostMatrix values(weight());
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < k; ++j) decoded_.set(i, j, values(i, j));
  }

  quant::Weight weight() {
    return {.data = data_.view(), .scale = is_float(data_.dtype()) ? View{} : scale_.view()};
  }
  quant::Weight rows(Range r) {
    quant::Weight w = weight();
    w.data = w.data.rows_of(r);
    if (w.scale) w.scale = is_int4_ ? w.scale.rows_of(r) : w.scale.cols_of(r);
    return w;
  }
  std::int64_t n() const { return data_.rows(); }
  double operator()(std::int64_t i, std::int64_t k) const { return decoded_(i, k); }
  double norm(std::int64_t i) const { return decoded_.norm(i); }

 private:
  void fill(std::uint64_t seed, float deviation) {
    const DType dtype = data_.dtype();
    if (is_float(dtype) || dtype == DType::f8e4m3) {
      data_.random(seed, is_float(dtype) ? deviation : 30.0f);
      return;
    }
    for (std::int64_t r = 0; r < data_.rows(); ++r)
      for (std::int64_t c = 0; c < data_.cols(); ++c) {
        const float x = noise(seed, std::uint64_t(r * data_.cols() + c));
        auto* const byte =
            static_cast<std::int8_t*>(data_.view().data) + r * data_.view().row_stride + c;
        *byte = std::int8_t((is_int4_ ? 73 : 30) * x);
      }
  }

  bool is_int4_;
  Matrix data_, scale_, decoded_;
};

// One backend of this build in one configuration.
struct Target {
  std::string configuration;
  int threads;
  std::function<std::unique_ptr<Backend>()> make;
  bool odd_rows = false;  // operands lie otherwise than Backend::place() puts them

  std::string name() const { return text(configuration, ", threads ", threads); }
};

// What the program is linked with: cpu_targets.cc, or those of a device. Targets that differ in
// threads alone stand together, for their results must be the same bit for bit.
const std::vector<Target>& targets();

// The ways of rounding activations that the targets have for e4m3 weights: all of a CPU's, or the
// one that a device prescribes.
inline std::vector<Activations> e4m3_activations() {
  if (targets().front().make()->e4m3_activations() == Activations::as_is)
    return {Activations::as_is, Activations::e4m3_per_token};
  return {Activations::e4m3_per_token};
}

inline constexpr Activations kActivations[] = {Activations::as_is, Activations::e4m3_per_token};
inline bool takes_odd_rows(DType weight, Activations a) {
  return weight != DType::u8 || a == Activations::as_is;
}

// Runs `run(backend)`, which returns the outputs (Matrix), on every target; the outputs go to
// `expect(outputs)`. Those of two threads must equal those of one, bit for bit. `odd_rows`: whether
// the operation takes rows that start anywhere.
template <class Run, class Expect>
void on_every_target(Run&& run, Expect&& expect, bool odd_rows = true) {
  ASSERT_FALSE(targets().empty());
  std::vector<Matrix> single;
  for (const Target& target : targets()) {
    if (target.odd_rows && !odd_rows) continue;
    SCOPED_TRACE(target.name());
    const std::unique_ptr<Backend> backend = target.make();
    std::vector<Matrix> outputs = run(*backend);
    for (const Matrix& m : outputs) ASSERT_TRUE(m.guards_intact()) << "wrote outside an output";
    expect(outputs);
    if (::testing::Test::HasFailure()) return;
    if (target.threads == 1) single = outputs;
    for (std::size_t i = 0; target.threads > 1 && i < outputs.size(); ++i)
      for (std::int64_t r = 0; r < outputs[i].rows(); ++r)
        ASSERT_EQ(outputs[i].row_bits(r) == single[i].row_bits(r), true)
            << "output " << i << " row " << r << " depends on the number of threads";
  }
}

// got[r, c] lies within bound(r, c) of want[r, c]. A NaN is near nothing.
template <class Bound>
void expect_near(const Matrix& got, const Matrix& want, Bound&& bound) {
  for (std::int64_t r = 0; r < want.rows(); ++r)
    for (std::int64_t c = 0; c < want.cols(); ++c) {
      const double error = std::abs(double(got(r, c)) - want(r, c));
      if (error <= bound(r, c)) continue;
      ADD_FAILURE() << "at [" << r << ',' << c << "]: got " << got(r, c) << ", want " << want(r, c)
                    << ", off by " << error << ", allowed " << bound(r, c);
      return;
    }
}

inline void expect_equal(const Matrix& got, const Matrix& want) {
  for (std::int64_t r = 0; r < want.rows(); ++r)
    for (std::int64_t c = 0; c < want.cols(); ++c)
      if (got.row_bits(r) != want.row_bits(r) && !(got(r, c) == want(r, c))) {
        ADD_FAILURE() << "at [" << r << ',' << c << "]: got " << got(r, c) << ", want "
                      << want(r, c);
        return;
      }
}

// Row i of `part` is row `first + i` of `whole`, bit for bit.
inline void expect_same_rows(const Matrix& part, const Matrix& whole, std::int64_t first) {
  for (std::int64_t r = 0; r < part.rows(); ++r)
    ASSERT_EQ(part.row_bits(r) == whole.row_bits(first + r), true)
        << "row " << first + r << " of " << whole.rows() << " is another in a batch of "
        << part.rows();
}

inline constexpr double kF32 = 0x1p-24;  // the unit roundoff of a float

// What rounding `value` to `dtype` may change: half a unit in the last place.
inline double rounding(DType dtype, double value) {
  if (dtype == DType::bf16) return std::abs(value) * 0x1p-8 + 0x1p-134;
  if (dtype == DType::f16) return std::abs(value) * 0x1p-11 + 0x1p-25;
  if (dtype == DType::f8e4m3) return std::abs(value) * 0x1p-4 + 0x1p-10;
  return std::abs(value) * kF32 + 0x1p-150;
}

// Result and reference are both rounded to `dtype`: apart by a unit in the last place, or less.
inline double two_roundings(DType dtype, double value) { return 2 * rounding(dtype, value); }

// How far a sum of n f32 products may be off, in any order, if sum |a_i b_i| <= magnitude: rounding
// errors of either sign grow as sqrt(n), and lambda = 8 of these are exceeded once in 10^10 sums
// (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis, theorem 3.1).
// The product of the vectors' norms serves as the magnitude (Cauchy-Schwarz).
inline double sum_error(std::int64_t n, double magnitude) {
  return 8 * std::sqrt(double(n) + 1) * kF32 * magnitude;
}

// The same for the products of `activations`: rounded ones may be summed with 14 bits in blocks of
// 128 columns (ops/activations.h), which tensor cores do in four steps of 32, cutting what is below
// the 13th bit of the largest term each time.
inline double product_error(Activations activations, std::int64_t n, double magnitude) {
  const bool short_sums = activations == Activations::e4m3_per_token;
  return sum_error(n, magnitude) + (short_sums ? 4 * 0x1p-13 * magnitude : 0);
}

// Runs `f`, which must throw E with `wanted` in its message.
template <class E, class F>
void expect_error(F&& f, const std::string& wanted) {
  try {
    f();
    ADD_FAILURE() << "no error; wanted: " << wanted;
  } catch (const E& e) {
    EXPECT_NE(std::string(e.what()).find(wanted), std::string::npos)
        << "got: " << e.what() << "\nwanted: " << wanted;
  }
}

// The row counts whose rows are compared, bit for bit, with the same rows in one batch of
// kBatchRows.
inline constexpr std::int64_t kBatchRows = 260;
inline const std::vector<std::int64_t> kBatches = {1, 2, 3, 7, 16, 33, 64, 200};

}  // namespace ostro::ops::testing
