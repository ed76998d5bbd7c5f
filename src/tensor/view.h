// Non-owning, typed-at-runtime view of a row-major matrix. Passed by value; never allocates.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/math.h"
#include "tensor/dtype.h"

namespace ostro {

enum class Device : std::uint8_t { cpu, cuda };

struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // elements from one row to the next, >= cols

  explicit operator bool() const { return data != nullptr; }

  template <class T>
  T* as() const {
    OSTRO_CHECK(dtype == dtype_of<std::remove_const_t<T>>, "view holds ", name(dtype));
    return static_cast<T*>(data);
  }

  // The first element of row r.
  template <class T>
  T* row(std::int64_t r) const {
    return as<T>() + r * row_stride;
  }

  bool contiguous() const { return row_stride == cols || rows <= 1; }
  std::size_t bytes() const { return std::size_t(rows * cols) * size_of(dtype); }

  // The same memory, narrowed. The range must lie inside.
  View rows_of(Range r) const {
    OSTRO_CHECK(0 <= r.begin && r.begin <= r.end && r.end <= rows, "rows [", r.begin, ',', r.end,
                ") of ", rows);
    View v = *this;
    v.data = static_cast<char*>(data) + r.begin * row_stride * std::int64_t(size_of(dtype));
    v.rows = r.size();
    return v;
  }
  View cols_of(Range c) const {
    OSTRO_CHECK(0 <= c.begin && c.begin <= c.end && c.end <= cols, "columns [", c.begin, ',', c.end,
                ") of ", cols);
    View v = *this;
    v.data = static_cast<char*>(data) + c.begin * std::int64_t(size_of(dtype));
    v.cols = c.size();
    return v;
  }
};

// A contiguous matrix at `data`.
inline View matrix(void* data, DType dtype, std::int64_t rows, std::int64_t cols,
                   Device device = Device::cpu) {
  return {data, dtype, device, rows, cols, cols};
}

inline bool same_shape(const View& a, const View& b) {
  return a.rows == b.rows && a.cols == b.cols;
}

// "bf16 [3,4096]", for messages.
std::string describe(const View& v);

}  // namespace ostro
