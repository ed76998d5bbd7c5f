// Rotary frequencies of a model.
#pragma once

#include <vector>

#include "base/json.h"
#include "model/config.h"

namespace ostro::model {

// A "rope_scaling" or "rope_parameters" object; `context` is the original one if it names none.
RopeScaling parse_rope_scaling(const JsonObject& rope, std::int64_t context);

// inv_freq[i] = theta^(-2i / head_dim), i < head_dim / 2, stretched as the model's scaling says.
//
// Dynamic scaling depends on the length of the sequence. Ostro fixes it when a request is admitted,
// from prompt + largest output (`sequence_tokens`), so that no cached key ever has to be rotated
// again; transformers recomputes it as the sequence grows, and keeps the keys it has. The two agree
// while sequence_tokens <= original_context.
std::vector<float> inverse_frequencies(const ModelConfig&, std::int64_t sequence_tokens);

}  // namespace ostro::model
