#pragma once

#include <string_view>
#include <vector>

#include "tensor/view.h"

namespace ostro::ops {

inline constexpr std::int64_t kQuantiles = 65536;

// Draws a slice of a matrix at random, each element by its place in the whole matrix alone:
//   i = (first_row + r) * matrix_cols + first_col + c
//   bits = SplitMix64's finaliser of key + (i / 4) * 0x9e3779b97f4a7c15
//   y[r, c] = quantiles[0, 16 bits of `bits` from bit 16 * (i % 4)]
//
//   quantiles  [1, 65536]    any        in, of the wanted distribution in rising order
//   y          [rows, cols]  as those   out, not quantiles
//
// first_row, first_col >= 0; first_col + cols <= matrix_cols. rows = 0 or cols = 0 does nothing.
// Exact: elements are copied. Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
struct Draw {
  View quantiles;
  View y;
  std::uint64_t key = 0;
  std::int64_t first_row = 0;
  std::int64_t first_col = 0;
  std::int64_t matrix_cols = 0;
};

void check(const Draw&);
void reference(const Draw&);

// The quantiles of N(0, deviation): up to 4.3 deviations.
std::vector<float> normal_quantiles(double deviation);

// The key of a matrix by its name.
std::uint64_t draw_key(std::uint64_t seed, std::string_view name);

// Elements [first, first + elements) of a matrix on the host; `quantiles` and `out` have elements
// of `size` bytes: 1, 2 or 4.
void draw_elements(const void* quantiles, std::size_t size, std::uint64_t key, std::uint64_t first,
                   std::uint64_t elements, void* out);

}  // namespace ostro::ops
