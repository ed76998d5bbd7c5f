// Beam search: which continuations of several beams stay, and when the search ends.
//
// As Hugging Face transformers 5 searches (generation/utils.py, _beam_search), one prompt at a
// time: of all continuations of all open beams the best K = (1 + ends) * width, at least 2 * width,
// are candidates by the sum of their log-probabilities. A candidate that ends (end id, stop
// sequence, length) is kept with the score
//
//   sum / length ^ length_penalty          length: tokens generated, the end id included
//
// if it is among the first `width` candidates and among the best `width` that were kept so far. The
// best `width` of the others are the open beams of the next step. The search is over when no beam
// is open, or once `width` have been kept and
//
//   early_stopping yes    at once
//   early_stopping no     the best open beam, scored at its present length, does not beat the worst
//   early_stopping never  the same, but for length_penalty > 0 scored at the greatest length
//
// diversity_rate is TensorRT-LLM's beam_search_diversity_rate: a candidate that continues open beam
// i (0: the best) gets rate * i added to its sum, so that children of worse beams stay longer.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/request.h"
#include "sched/scheduler.h"

namespace ostro::engine {

// One search. Starts with one open beam, the prompt.
//
//   for (each open beam) search.offer(its next token's log-probabilities);
//   for (children = search.advance(...); !children.empty(); ...) compute them, offer, advance
class BeamSearch {
 public:
  // `ends`: end ids and stop sequences of the request.
  BeamSearch(const Beams&, std::size_t ends, std::int64_t max_new_tokens);

  // One token of an open or kept beam.
  struct Node {
    std::int32_t parent = -1;  // node of the token before; -1: the first
    std::int32_t beam = 0;     // open beam that it continued
    std::int32_t token = 0;
  };
  struct Kept {
    float score = 0;
    std::int32_t last = 0;  // node
    Ending ending;
  };

  // The log-probabilities [vocab] of the next open beam's next token, -infinity: not that one.
  void offer(std::span<const float> log_probs);
  // After an offer for each open beam: chooses. The next open beams, the best first; none if the
  // search has ended. `ending` is asked once for each candidate, before its length is looked at.
  std::vector<sched::Child> advance(const std::function<Ending(const sched::Child&)>& ending);

  // The best first; when the search has ended, fewer than `width` only if there were no more.
  const std::vector<Kept>& kept() const { return kept_; }
  // All nodes so far; advance() appends those that it makes.
  const std::vector<Node>& nodes() const { return nodes_; }
  // The nodes from the first token to this one.
  std::vector<std::int32_t> path(std::int32_t node) const;

 private:
  struct Open {
    float sum = 0;
    std::int32_t last = -1;
  };
  struct Candidate {
    float sum = 0;
    sched::Child child;
  };
  static bool better(const Candidate&, const Candidate&);

  std::int32_t add_node(const Candidate&);
  void keep(const Candidate&, const Ending&);
  float score(float sum, std::int64_t length) const;
  bool over(const std::vector<Open>& next) const;

  Beams beams_;
  std::size_t most_candidates_;
  std::int64_t max_new_tokens_;
  std::int64_t generated_ = 0;
  std::vector<Open> open_ = std::vector<Open>(1);
  std::int32_t offered_ = 0;
  std::vector<Candidate> candidates_;  // a heap, the worst at its front
  std::vector<Kept> kept_;
  std::vector<Node> nodes_;
};

}  // namespace ostro::engine
