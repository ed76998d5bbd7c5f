// Weights as 8-bit integers with one scale for each output (symmetric: no zero point). The largest
// magnitude of a row becomes 127.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace ostro::quant {

// max(|x[i]|) / 127, i < n, and never so small that its inverse overflows. x is finite.
float int8_scale(const float* x, std::int64_t n);

// q[i] = x[i] / scale rounded to nearest even, within [-127, 127].
void int8_encode(const float* x, std::int64_t n, float scale, std::int8_t* q);

}  // namespace ostro::quant
