// The next token from a row of logits on the host; ops::Sample does the same on any device.
#pragma once

#include <span>

#include "engine/request.h"

namespace ostro::engine {

struct Choice {
  std::int32_t token = 0;
  float log_prob = 0;  // of the token in softmax(logits)
};

using ops::log_prob;
using ops::most_likely;

// All of them. A row without one finite logit is an InternalError.
void log_softmax(std::span<const float> logits, std::vector<float>& log_probs);

// The index of the largest logit, the lowest among equals. NaN is never chosen; a row without one
// finite logit is an InternalError.
std::int32_t argmax(std::span<const float> logits);

// The seed of sequence i of a request: the request's own for 0.
std::uint64_t sequence_seed(std::uint64_t seed, std::int32_t i);

// What of `sampling` ops::Sample does, for a sequence of `seed` that has generated `step` tokens.
ops::SampleSettings settings_of(const Sampling& sampling, std::uint64_t seed, std::int64_t step);

// Chooses by temperature, top_k, top_p and min_p of `sampling`. The draw depends on the seed and on
// `step`, the number of tokens that the request has generated before, alone. Keeps its workspace
// between calls.
class Sampler {
 public:
  Choice choose(std::span<const float> logits, const Sampling& sampling, std::int64_t step);
  // The token alone, which spares a pass over the vocabulary.
  std::int32_t token(std::span<const float> logits, const Sampling& sampling, std::uint64_t seed,
                     std::int64_t step);

 private:
  ops::HostSampler sampler_;
};

}  // namespace ostro::engine
