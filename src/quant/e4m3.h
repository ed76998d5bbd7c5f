// Rows of numbers as f8e4m3 with a scale: weights with one for each output, activations with one
// for each token (or for each kE4m3Group of its columns). The largest magnitude of activations
// becomes 448, that of weights what makes the error of their row least.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace ostro::quant {

// Columns that share a scale where a row has several: the input of an expert's down projection.
inline constexpr std::int64_t kE4m3Group = 128;

// The largest magnitude that scales are made for is at least this: a row of zeros has one too.
inline constexpr float kE4m3LeastAmax = 1e-10f;

// amax = max(|x[i]|, kE4m3LeastAmax): the scale that a row is multiplied by when it is decoded, and
// the factor that it is multiplied by before it is rounded. Two f32 divisions, each rounded once,
// so that every device has the same bits.
inline float e4m3_scale(float amax) { return amax / kMaxF8e4m3; }
inline float e4m3_factor(float amax) { return kMaxF8e4m3 / amax; }

// max(|x[i]|, kE4m3LeastAmax), i < n; a NaN is not the largest.
float e4m3_amax(const float* x, std::int64_t n);

// What takes the place of amax for a row of weights: amax * (1 + t / 8), t = 0 .. 7, of which t
// leaves the least squared error; the first of equals. Over an octave of scales a row's largest
// magnitudes wander through all mantissas of e4m3, whose error is up to twice as large at the
// beginning of a binade as at its end; beyond an octave everything repeats. Of long rows the first
// kE4m3FitColumns decide, so that fitting takes less time than rounding.
inline constexpr std::int64_t kE4m3FitColumns = 512;
float e4m3_fitted_amax(const float* x, std::int64_t n);

// q[i] = f8e4m3(x[i] * factor), an f32 product.
void e4m3_encode(const float* x, std::int64_t n, float factor, f8e4m3* q);

// x[i] becomes what is left of it when it is stored as f8e4m3 with the scale of its `group`
// neighbours (the last group may be shorter): f32(f8e4m3(x[i] * factor)) * scale.
void e4m3_round(float* x, std::int64_t n, std::int64_t group);

}  // namespace ostro::quant
