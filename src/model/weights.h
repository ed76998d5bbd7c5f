// The weights of one rank, where its backend reads them.
#pragma once

#include <vector>

#include "checkpoint/engine_reader.h"
#include "model/layout.h"
#include "ops/backend.h"

namespace ostro::model {

struct LayerWeights {
  View attention_norm;   // [1, hidden]
  quant::Weight qkv;     // [(heads + 2 kv_heads) * head_dim, hidden] of this rank: q | k | v
  quant::Weight o;       // [hidden, heads * head_dim]
  View mlp_norm;         // [1, hidden]
  quant::Weight router;  // [experts, hidden]; empty if dense
  std::vector<ops::Expert> experts;  // of this rank
};

struct Weights {
  View embedding;  // first stage
  std::vector<LayerWeights> layers;
  View norm;                  // last stage
  quant::Weight lm_head;      // last stage
  std::vector<Buffer> owned;  // host memory that a backend reads in place
};

// Reads this rank's part of an engine of any mapping and places it. What lies in one piece in the
// engine's map is used there; the rest is assembled. `engine` must outlive the backend.
Weights load_weights(const checkpoint::EngineReader& engine, const ModelConfig&, const Mapping&,
                     std::int64_t rank, ops::Backend&);

}  // namespace ostro::model
