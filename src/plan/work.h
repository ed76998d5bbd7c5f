// What a step must at least move and compute.
#pragma once

#include "model/config.h"

namespace ostro::plan {

// Of all ranks together.
struct Work {
  double bytes = 0;  // weights read once: dense ones, and the experts that were chosen
  double multiply_adds = 0;
  double experts = 0;  // expected number in use in a layer
};

// A step of `rows` tokens, of which `logit_rows` get logits. Experts are in use as uniform routing
// would have them; keys and values are not counted.
Work work_of_step(const model::ModelConfig&, double rows, double logit_rows);

}  // namespace ostro::plan
