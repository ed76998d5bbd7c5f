#pragma once

#include <cstdint>

namespace ostro {

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
constexpr T round_up(T a, T multiple) {
  return ceil_div(a, multiple) * multiple;
}

// A half-open range of rows, columns, layers, heads or experts.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  bool contains(std::int64_t i) const { return begin <= i && i < end; }
  bool operator==(const Range&) const = default;
};

// Part `index` of `parts` nearly equal parts of [0, n): sizes differ by at most one.
constexpr Range part_of(std::int64_t n, std::int64_t index, std::int64_t parts) {
  return {n * index / parts, n * (index + 1) / parts};
}

}  // namespace ostro
