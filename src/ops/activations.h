#pragma once

#include <cstdint>

namespace ostro::ops {

// How the activations of a product with e4m3 or int4 weights (quant/weight.h) are rounded before
// it.
//
//   as_is           not at all
//   e4m3_per_token  to f8e4m3 with one scale for each row, made from its largest magnitude, by the
//                   formulas of quant/e4m3.h. The input of ExpertMlp's down projection has one for
//                   each row and 128 columns (of this rank, from its first), and is rounded from
//                   f32 to f8e4m3 at once; of int4 weights it has one for each row, and may be
//                   rounded to x's dtype first.
//
// Rounded products may be summed by tensor cores within 128 columns, that is with 14 bits or more;
// the sums of such blocks are added in f32 or better.
enum class Activations : std::uint8_t { as_is, e4m3_per_token };

}  // namespace ostro::ops
