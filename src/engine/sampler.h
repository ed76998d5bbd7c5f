// The next token from a row of logits.
#pragma once

#include <span>

#include "engine/request.h"

namespace ostro::engine {

struct Choice {
  std::int32_t token = 0;
  float log_prob = 0;  // of the token in softmax(logits)
};

// log softmax(logits)[token], summed in f64. A NaN among the logits counts as -infinity.
float log_prob(std::span<const float> logits, std::int32_t token);

// The index of the largest logit, the lowest among equals. NaN is never chosen; a row without one
// finite logit is an InternalError.
std::int32_t argmax(std::span<const float> logits);

// The k most likely tokens with their log-probabilities, the best first, lower ids among equals.
std::vector<TokenLogProb> most_likely(std::span<const float> logits, std::int32_t k);

// The seed of sequence i of a request: the request's own for 0.
std::uint64_t sequence_seed(std::uint64_t seed, std::int32_t i);

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
  struct Candidate {
    float logit;
    std::int32_t token;
  };
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
};

}  // namespace ostro::engine
