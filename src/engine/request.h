// What a client asks of the engine, and what it gets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ostro::engine {

using RequestId = std::int64_t;

// How the next token is chosen from the logits, in this order: temperature, top_k, top_p, min_p.
// Greedy (the largest logit, the lower id among equals) if temperature is 0 or top_k is 1.
struct Sampling {
  float temperature = 1;   // logits are divided by it; >= 0
  std::int32_t top_k = 1;  // the most likely tokens that stay; 0: all
  float top_p = 0;         // the fewest tokens whose probabilities reach it stay; 0 or 1: all
  float min_p = 0;         // tokens of at least min_p times the best probability stay; in [0, 1]
  std::uint64_t seed = 0;  // the same seed gives the same tokens, whatever runs beside
};

// Throws InvalidArgument naming the value that is out of range.
void check(const Sampling&);

struct Request {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;   // 0: only the prompt is scored
  Sampling sampling;
  std::vector<std::int32_t> end_ids;  // any of these ends the sequence
  bool logits = false;                // with every generated token
  bool prompt_logits = false;
  bool prompt_log_probs = false;
};

enum class Finish { none, length, end_id, cancelled };

// One token of one request, or what was learnt of a part of its prompt.
struct Event {
  RequestId id = 0;
  bool has_token = false;
  std::int32_t token = 0;
  float log_prob = 0;           // natural log of the model's probability of the token, before
                                // temperature and truncation
  std::vector<float> logits;    // [vocab], if asked for
  std::vector<float> prompt_logits;     // [rows, vocab] of the next prompt tokens, if asked for
  std::vector<float> prompt_log_probs;  // of prompt tokens 1, 2 ... in order, if asked for
  Finish finish = Finish::none;
};

}  // namespace ostro::engine
