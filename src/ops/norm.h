#pragma once

#include "ops/activations.h"
#include "tensor/view.h"

namespace ostro::ops {

// Adds a branch to the residual stream, then normalises each token by its root mean square:
//   residual[t,:] += x[t,:]                                          (only if x is given)
//   y[t,:] = weight[:] * residual[t,:] / sqrt(mean(residual[t,:]^2) + eps)   (only if y is given)
//
//   x         [tokens, hidden]  f32           in, may be empty
//   residual  [tokens, hidden]  f32           in/out
//   weight    [1, hidden]       f32|f16|bf16  in, may be empty if y is
//   y         [tokens, hidden]  f32|f16|bf16  out, not x or residual, may be empty
//   activations  how the products that read y will round it, which a backend may do at once; it
//             changes no result, if y is written by this backend's operations and copies alone.
//             e4m3_per_token needs y
//   for_products  products with e4m3 weights alone read y, which may be left unwritten then; needs
//             activations that are not as_is
//   eps       added to the mean square, > 0 if y is given (Hugging Face: rms_norm_eps)
//
// The sum of squares is kept in f32 or better, in one fixed order whatever the number of tokens.
// tokens = 0 does nothing.
// Zhang and Sennrich 2019, arXiv:1910.07467.
struct AddRmsNorm {
  View x;
  View residual;
  View weight;
  View y;
  float eps = 0;
  Activations activations = Activations::as_is;
  bool for_products = false;
};

// Of every op: throws InvalidArgument with the rule that is broken, Unsupported for another dtype.
void check(const AddRmsNorm&);
// Of every op: what backends are tested against. Host memory, sums in f64; throws as check() does,
// and for an index out of range too.
void reference(const AddRmsNorm&);

}  // namespace ostro::ops
