// What a request's settings do to the logits before a token is chosen from them.
//
// x are the logits, `tokens` prompt and output so far, c(t) how often t is in the output. In this
// order, which is that of transformers' logits processors (SequenceBias, RepetitionPenalty,
// NoRepeatNGram, NoBadWords, MinNewTokensLength):
//
//   logit_bias            x[t] += bias
//   repetition_penalty p  t in tokens:  x[t] = x[t] < 0 ? x[t] * p : x[t] / p
//                         (Keskar et al. 2019, arXiv:1909.05858)
//   presence p, frequency f             x[t] -= c(t) * f + (c(t) > 0 ? p : 0)     (OpenAI's API)
//   no_repeat_ngram_size n              x[t] = -inf if the last n - 1 tokens and t are an n-gram
//                                       of `tokens` already
//   bad_words w           x[w.back()] = -inf if tokens end with the rest of w; a w that is an end
//                         id alone is ignored
//   min_tokens            x[end id] = -inf while the output is shorter
//
// Where no finite logit is left, the token is chosen from the model's logits after all
// (transformers fails then). transformers has no presence and frequency penalty. The rest is
// compared with it by tests/engine/transformers_rules_test.cc.
//
// A guide comes after them and is never overruled: what it allows is all that is left.
#pragma once

#include <span>

#include "engine/request.h"

namespace ostro::engine {

// Whether any rule may change anything.
bool has_rules(const Sampling&);

// Applies the rules. Keeps its workspace between calls; one thread.
class LogitRules {
 public:
  // `tokens` are the `prompt_tokens` of the prompt and the output. The result is valid until the
  // next call.
  std::span<const float> apply(std::span<const float> logits, const Sampling&,
                               std::span<const std::int32_t> end_ids,
                               std::span<const std::int32_t> tokens, std::size_t prompt_tokens);

  // Keeps of `ruled`, what apply() returned or the logits themselves, the tokens of `allowed`
  // (guide::Matcher's) and, where the output may end, the `ends`. If no finite one is left, keeps
  // those of `logits`. The result is valid until the next call of either.
  std::span<const float> keep(std::span<const float> ruled, std::span<const float> logits,
                              std::span<const std::uint32_t> allowed,
                              std::span<const std::int32_t> ends, bool may_end);

 private:
  void penalise(const Sampling&, std::span<const std::int32_t> tokens, std::size_t prompt_tokens);

  std::vector<float> x_;
  std::vector<float> kept_;
  std::vector<std::int32_t> counts_;  // [vocab], zero between calls
};

// Which of `stops` the output ends with, if any: the first of them; -1: none.
std::ptrdiff_t stop_at_end(std::span<const std::vector<std::int32_t>> stops,
                           std::span<const std::int32_t> output);

}  // namespace ostro::engine
