#pragma once

#include "ops/activations.h"
#include "quant/weight.h"

namespace ostro::ops {

// A dense layer without bias:  y[t,i] = sum_k x[t,k] * w[i,k]
//
//   x  [tokens, k]  f32|f16|bf16  in
//   w  [n, k]       quant::Weight; float weights have x's dtype or are f32  in
//   y  [tokens, n]  as x, or f32  out, not x
//   activations     how x is rounded first; as_is unless w is e4m3 or int4
//
// Products are exact and summed in f32 or better. Each output is summed in one fixed order that
// depends on k alone, not on tokens or n (batch.invariant). tokens = 0 does nothing; k = 0 gives 0.
struct Linear {
  View x;
  quant::Weight w;
  View y;
  Activations activations = Activations::as_is;
};

void check(const Linear&);
void reference(const Linear&);

}  // namespace ostro::ops
