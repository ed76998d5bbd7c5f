// What a step must at least move and compute.
#pragma once

#include "model/config.h"

namespace ostro::plan {

// Bytes of a weight matrix of attention or of an expert, in the format that the engine keeps it in,
// with the scales of its rows or groups where that has them.
double matrix_bytes(const model::ModelConfig&, double rows, double cols);

// Of a layer: q, k, v and o of so many heads, and gate, up and down of one expert cut to `inter`.
double attention_bytes(const model::ModelConfig&, double heads, double kv_heads);
double expert_bytes(const model::ModelConfig&, double inter);

// Keys and values of a token in a layer.
double kv_bytes(const model::ModelConfig&, double kv_heads);

// Of all ranks together.
struct Work {
  double bytes = 0;  // weights read once: dense ones, and the experts that were chosen; the cache
  double multiply_adds = 0;
  double experts = 0;  // expected number in use in a layer
};

// A step of `rows` tokens, of which `logit_rows` get logits, that reads the keys and values of
// `cached` tokens of sequences before it. Experts are in use as uniform routing would have them;
// multiplications of attention are not counted.
Work work_of_step(const model::ModelConfig&, double rows, double logit_rows, double cached = 0);

}  // namespace ostro::plan
