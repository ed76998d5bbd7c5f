// In-flight batching: sequences in, what each step computes out. Host logic only.
#pragma once

#include <deque>
#include <map>

#include "kv/block_pool.h"

namespace ostro::sched {

using SequenceId = std::int64_t;

struct Limits {
  std::int64_t step_tokens = 0;    // rows of one step
  std::int64_t step_requests = 0;  // sequences of one step
  std::int64_t logit_rows = 0;     // rows of one step whose logits are computed, >= step_requests
  std::int64_t context = 0;        // tokens of one sequence
  std::int64_t block_tokens = 0;
  std::int64_t window = 0;         // sliding window of the model, tokens; 0: none
};

// What a new sequence asks for.
struct Demand {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;
  bool prompt_logits = false;  // of every prompt token, not the last alone
};

// A sequence's share of a step: `count` of its tokens, from position `begin`.
struct Share {
  SequenceId id = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t logits = 0;  // of how many of its last rows logits are computed
  bool last_of_prompt = false;  // the logits of the last row choose a new token
};

// One sequence from admission to its last token.
struct Sequence {
  SequenceId id = 0;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t prompt_tokens = 0;
  std::int64_t max_new_tokens = 0;
  std::int64_t computed = 0;         // tokens whose keys and values are cached or being computed
  bool prompt_logits = false;
  std::int64_t reserved_blocks = 0;
  kv::BlockTable blocks;
};

// First come, first served, under GUARANTEED_NO_EVICT: a sequence is admitted when the blocks for
// its whole length are free, so that no running sequence is ever paused. A step holds the next token
// of every running sequence first, then chunks of prompts in the room that is left, so that a long
// prompt never stalls a running stream for more than one step. Not thread-safe.
class Scheduler {
 public:
  // The pool must outlive the scheduler.
  Scheduler(const Limits&, kv::BlockPool&);

  // Throws InvalidArgument if the sequence can never run: an empty prompt, more tokens than the
  // context or than the whole pool holds.
  void add(SequenceId, Demand);

  // The shares of the next step, in running order; empty if nothing waits. Every share counts as
  // computed from then on.
  std::vector<Share> next();

  // Appends the token chosen after the step that computed the sequence's last token.
  void append(SequenceId, std::int32_t token);
  // Ends a sequence, running or waiting, and frees its blocks. Unknown ids do nothing.
  void remove(SequenceId);

  const Sequence& sequence(SequenceId id) const { return running_.at(id); }
  bool idle() const { return running_.empty() && waiting_.empty(); }
  std::size_t running() const { return running_.size(); }
  std::size_t waiting() const { return waiting_.size(); }

 private:
  struct Waiting {
    SequenceId id;
    Demand demand;
  };

  std::int64_t blocks_for(const Demand&) const;
  void admit();

  Limits limits_;
  kv::BlockPool& pool_;
  std::deque<Waiting> waiting_;
  std::map<SequenceId, Sequence> running_;
  std::vector<SequenceId> order_;  // of admission
  std::int64_t reserved_ = 0;      // blocks promised to running sequences
};

}  // namespace ostro::sched
