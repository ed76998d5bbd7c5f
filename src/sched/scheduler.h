// In-flight batching: sequences in, what each step computes out. Host logic only.
#pragma once

#include <deque>
#include <limits>
#include <map>
#include <optional>

#include "kv/block_pool.h"
#include "sched/fair_queue.h"

namespace ostro::sched {

struct Limits {
  std::int64_t step_tokens = 0;    // rows of one step
  std::int64_t step_requests = 0;  // sequences of one step
  std::int64_t logit_rows = 0;     // rows of one step whose logits are computed, >= step_requests
  std::int64_t context = 0;        // tokens of one sequence
  std::int64_t block_tokens = 0;
  std::int64_t window = 0;  // sliding window of the model, tokens; 0: none
  std::int64_t steps = 1;   // that may be in flight: next() is called again before complete()
  // Rows of a step up to which reading the weights takes longer than multiplying, about; -1:
  // prompts are never spread.
  std::int64_t ridge_tokens = -1;
};

enum class Capacity {
  guaranteed_no_evict,  // a sequence starts when all that run will find a place to their ends
  max_utilization,      // when its prompt has; without a free block the youngest pauses
};

struct Policy {
  Capacity capacity = Capacity::guaranteed_no_evict;
  bool reuse = false;  // full blocks of equal beginnings are computed once
};

// A sequence's share of a step: `count` of its tokens, from position `begin`. A sequence that was
// forked has a share for each branch, one after the other.
struct Share {
  SequenceId id = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t logits = 0;      // of how many of its last rows logits are computed
  bool last_of_prompt = false;  // the logits of the last row choose a new token
  std::int32_t branch = 0;
};

struct Branch {
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t computed = 0;         // tokens whose keys and values are cached or being computed
  kv::BlockTable blocks;

  std::int64_t length() const { return std::int64_t(tokens.size()); }
  std::int64_t left() const { return length() - computed; }
};

// One sequence from its start to its last token. It is its own branch 0; one that was forked has
// others of the same length beside it, which share the blocks of what they have in common.
struct Sequence : Branch {
  explicit Sequence(Branch whole) : Branch(std::move(whole)) {}

  SequenceId id = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t max_new_tokens = 0;
  std::int32_t width = 1;      // branches that it may have
  std::vector<Branch> others;  // branches 1, 2 ...
  bool prompt_logits = false;
  std::int64_t told = 0;         // prompt tokens whose logits were computed, if they are wanted
  std::int64_t most_blocks = 0;  // that it holds at any time
  std::int32_t priority = 0;
  std::string salt;
  User* user = nullptr;
  std::int64_t place = 0;   // in the order of starting
  std::int64_t reused = 0;  // prompt tokens that the cache had when they were first needed
  std::int64_t pauses = 0;
  std::int64_t in_flight = 0;  // shares of it in steps in flight

  std::size_t branches() const { return 1 + others.size(); }
  Branch& branch(std::size_t i) { return i == 0 ? *this : others[i - 1]; }
  const Branch& branch(std::size_t i) const { return i == 0 ? *this : others[i - 1]; }
};

// A branch of a sequence after a fork: what it continues, and with which token.
struct Child {
  std::int32_t branch = 0;
  std::int32_t token = 0;
};

// A step holds the next token of every running sequence first, then chunks of prompts in the room
// that is left, so that a long prompt never stalls a running stream for more than one step. Among
// prompts and among those that wait, higher priorities and users that got less come first.
//
// Under guaranteed_no_evict, while more wait than can start, prompts are spread over the steps.
// Rows beside the next tokens cost little up to the ridge of the roofline (Williams, Waterman and
// Patterson 2009, doi:10.1145/1498765.1498785), and sequences that start one after the other end
// so, and need less room together. A step then has prompts up to the ridge; or where that is more,
// enough to fill what is free in a sixteenth of the time that a sequence runs, but at most for 1.5
// sequences in the place of each that ends. Where all that wait can start at once, they do.
//
// A sequence that does not fit is overtaken by smaller ones behind it, at most kMostOvertaken
// times; then all wait until it fits. Under max_utilization paused sequences resume before any
// other starts, oldest first, and the oldest running one is never paused: all come to an end.
//
// Under guaranteed_no_evict a sequence starts if what all may ever hold, each at its whole length,
// fits; or if the most that they hold at the same time does. Those whose prompts are computed gain
// a token in every step, so that it is known until when each of them is there at most, and what it
// holds by then; others (prompts, several branches) count at their whole lengths for ever. With a
// window or several steps in flight the whole lengths decide alone.
//
// A sequence of several branches (beams) runs, pauses and ends as one, and counts as `width` of
// them from its start: its prompt is computed once, then fork() makes the branches, which share
// full blocks and copy the last one when they write to it. After a pause the blocks that its whole
// prompt fills are computed once more, then each branch alone up to its last token, then the last
// tokens of all in one step. Only blocks of its prompt may be reused by others.
//
// With reuse, a block that a step fills may be shared from that step on: a step writes all keys and
// values of a layer before it reads them.
//
// With several steps in flight each takes its part of the sequences, so that the stages of a
// pipeline have equal work at the same time. A sequence whose next token is not chosen yet has
// nothing left to compute, so it is in one step at most; the chunks of one prompt may be in
// several. Blocks need no more care than with one step: every rank computes the steps in the order
// of next(), so a step in flight has written what later ones share of it, and has read or written
// what was given back, by the end of its sequence or behind a window, before later ones overwrite
// it. Only a pause waits: a sequence in flight keeps its blocks. Not thread-safe.
class Scheduler {
 public:
  static constexpr std::int64_t kMostOvertaken = 32;
  static constexpr std::size_t kLookAhead = 64;  // waiting sequences that a step considers

  // The pool must outlive the scheduler.
  Scheduler(const Limits&, kv::BlockPool&, const Policy& = {});

  // Throws InvalidArgument if the sequence can never run: an empty prompt, more tokens than the
  // context or than the whole pool holds, more branches than a step has sequences. May be called
  // from any thread.
  void check(std::int64_t prompt_tokens, std::int64_t max_new_tokens, std::int32_t width = 1) const;
  // Checks, and queues the sequence.
  void add(SequenceId, Demand);

  // The shares of the next step, running sequences first; empty if there is nothing to compute, or
  // not before a step in flight is complete. Every share counts as computed from then on. While a
  // sequence generates, the step holds at most `most_prompt_tokens` (>= 1) of prompts, and fewer
  // while more wait than can start.
  std::vector<Share> next(
      std::int64_t most_prompt_tokens = std::numeric_limits<std::int64_t>::max());
  // The blocks that must be copied before that step, of the last next().
  const std::vector<kv::BlockCopy>& copies() const { return copies_; }
  // The oldest step in flight, which has these shares, has been computed. Then come append(),
  // fork() or remove() for the tokens that it chooses, before the step after those in flight is
  // asked for.
  void complete(const std::vector<Share>&);

  // Appends the token chosen after the step that computed the sequence's last token.
  void append(SequenceId, std::int32_t token);
  // The same for a sequence of several branches: they are replaced by 1 to `width` children of
  // theirs.
  void fork(SequenceId, std::span<const Child>);
  // Ends a sequence, running or waiting, and frees its blocks. Unknown ids do nothing.
  void remove(SequenceId);

  // One that has started.
  const Sequence& sequence(SequenceId id) const { return started_.at(id); }
  bool has_started(SequenceId id) const { return started_.contains(id); }
  bool idle() const { return started_.empty() && queue_.size() == 0; }
  std::size_t running() const { return std::size_t(running_width_); }  // branches
  std::size_t waiting() const { return queue_.size() + paused_.size(); }
  std::int64_t reused() const { return reused_; }  // prompt tokens of all sequences so far
  std::int64_t pauses() const { return pauses_; }  // of all sequences so far

 private:
  struct Plan;  // of the step at hand

  std::int64_t spread(std::int64_t prompt_tokens, std::int64_t length, std::int64_t width) const;
  std::int64_t most_blocks(std::int64_t prompt_tokens, std::int64_t max_new_tokens,
                           std::int32_t width) const;
  std::int64_t held(const Sequence&) const;
  std::int64_t reusable(const Sequence&) const;
  std::int64_t promised() const;
  std::int64_t peak() const;
  std::int64_t most_in_use();
  std::int64_t prompt_budget(std::int64_t decoding);
  bool fits(std::int64_t most_blocks, std::int64_t known, std::int32_t width,
            kv::BlockTable::Match);
  bool fits(const Waiting&);
  Sequence* start_next();
  Sequence* resume();
  Sequence& start(const Waiting&);
  void run(Sequence&);
  void stop(Sequence&);
  bool make_room(Sequence&, Branch&, std::int64_t tokens, Plan&);
  void pause(Sequence&);
  void take(Sequence&, std::int32_t branch, std::int64_t count, std::int64_t logits, Plan&);
  bool decode(Sequence&, Plan&);
  void take_chunk(Sequence&, Plan&);
  void take_branches(Sequence&, Plan&);
  void reuse(Sequence&);

  Limits limits_;
  kv::BlockPool& pool_;
  Policy policy_;
  FairQueue queue_;
  std::map<SequenceId, Sequence> started_;
  std::vector<Sequence*> order_;  // running, by priority and start
  std::deque<Sequence*> paused_;  // the same
  std::int64_t running_width_ = 0;
  std::int64_t reserved_ = 0;         // the sum of most_blocks over started_
  std::optional<std::int64_t> peak_;  // blocks in use at most from this step on, if it is known
  std::vector<kv::BlockCopy> copies_;
  std::int64_t next_place_ = 0;
  std::int64_t reused_ = 0;
  std::int64_t pauses_ = 0;
  std::int64_t in_flight_ = 0;     // steps
  double mean_output_tokens_ = 0;  // of the sequences that ended of late; 0: none has
};

}  // namespace ostro::sched
