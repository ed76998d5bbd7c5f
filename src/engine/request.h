// What a client asks of the engine, and what it gets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/sample.h"

namespace ostro::guide {
class Grammar;
}

namespace ostro::engine {

using RequestId = std::int64_t;

// How the next token is chosen from the logits: the rules of logit_rules.h in their order, then
// temperature, top_k, top_p, min_p. Greedy (the largest logit, the lower id among equals) if
// temperature is 0 or top_k is 1.
struct Sampling {
  float temperature = 1;   // logits are divided by it; >= 0
  std::int32_t top_k = 1;  // the most likely tokens that stay; 0: all
  float top_p = 0;         // the fewest tokens whose probabilities reach it stay; 0 or 1: all
  float min_p = 0;         // tokens of at least min_p times the best probability stay; in [0, 1]
  std::uint64_t seed = 0;  // the same seed gives the same tokens, whatever runs beside

  float repetition_penalty = 1;  // > 0
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::int32_t no_repeat_ngram_size = 0;                        // 0: off
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};  // token, what is added
  std::vector<std::vector<std::int32_t>> bad_words = {};        // none empty
  std::int64_t min_tokens = 0;  // before it no end id is chosen and no stop sequence counts
};

// Throws InvalidArgument naming the value that is out of range.
void check(const Sampling&, std::int64_t vocab);
void check(const Sampling&);  // all but the token ids

inline constexpr std::int32_t kMostSequences = 128;

enum class EarlyStopping { no, yes, never };

// Beam search, by the rules of beam_search.h, for width > 1. It chooses by log-probabilities after
// the rules of Sampling; nothing is drawn.
struct Beams {
  std::int32_t width = 1;
  float length_penalty = 1;
  EarlyStopping early_stopping = EarlyStopping::no;
  float diversity_rate = 0;
};

// Throws InvalidArgument naming the value that is out of range, or that goes with beams alone.
void check(const Beams&);

struct Request {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;  // 0: only the prompt is scored
  Sampling sampling = {};
  std::vector<std::int32_t> end_ids = {};  // any of these ends the sequence
  bool logits = false;                     // with every generated token
  bool prompt_logits = false;
  bool prompt_log_probs = false;

  // Of one prompt: each with a seed of its own, or the best beams.
  std::int32_t sequences = 1;
  std::vector<std::vector<std::int32_t>> stop_sequences = {};  // an output that ends with one ends
  bool log_probs = true;                                       // of every generated token
  std::int32_t alternatives = 0;         // the most likely tokens beside each generated token
  std::int32_t prompt_alternatives = 0;  // beside each prompt token that has a log-prob
  std::int32_t priority = 0;
  std::string user = {};
  std::string cache_salt = {};
  Beams beams = {};
  std::shared_ptr<const guide::Grammar> guide = {};  // what each sequence must look like

  bool searches() const { return beams.width > 1 && max_new_tokens > 0; }
};

// guide: its guide lets nothing follow, an end id at most. dead_end: no token goes on, but the
// guide does not let it end here.
enum class Finish { none, length, end_id, cancelled, stop, guide, dead_end };

using TokenLogProb = ops::Likely;

// Whether and how a sequence ends with its last token.
struct Ending {
  Finish finish = Finish::none;
  std::size_t stop_index = 0;  // Finish::stop: which sequence
};

// What the whole request cost; complete with its last event.
struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t reused_tokens = 0;  // of the prompt, that were in the cache
  std::int64_t output_tokens = 0;
  std::int64_t pauses = 0;
};

// One token of one sequence of a request, or what was learnt of a part of its prompt. Beams tell
// all their tokens when the search has ended.
struct Event {
  RequestId id = 0;
  bool has_token = false;
  std::int32_t token = 0;
  float log_prob = 0;         // natural log of the model's probability of the token, before rules,
                              // temperature and truncation
  std::vector<float> logits;  // [vocab], the model's, if asked for
  std::vector<float> prompt_logits;     // [rows, vocab] of the next prompt tokens, if asked for
  std::vector<float> prompt_log_probs;  // of prompt tokens 1, 2 ... in order, if asked for
  Finish finish = Finish::none;         // of the sequence
  float score = 0;                      // of a beam that finished

  std::int32_t sequence = 0;
  std::vector<TokenLogProb> alternatives;                      // best first
  std::vector<std::vector<TokenLogProb>> prompt_alternatives;  // of the same tokens
  std::size_t stop_index = 0;                                  // Finish::stop: which one
  bool last = false;                                           // no event of the request follows
  Usage usage;                                                 // so far
};

}  // namespace ostro::engine
