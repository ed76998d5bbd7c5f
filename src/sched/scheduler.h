// In-flight batching: sequences in, what each step computes out. Host logic only.
#pragma once

#include <deque>
#include <map>

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
};

enum class Capacity {
  guaranteed_no_evict,  // a sequence starts when its whole length has a place in the pool
  max_utilization,      // when its prompt has; without a free block the youngest pauses
};

struct Policy {
  Capacity capacity = Capacity::guaranteed_no_evict;
  bool reuse = false;  // full blocks of equal beginnings are computed once
};

// A sequence's share of a step: `count` of its tokens, from position `begin`.
struct Share {
  SequenceId id = 0;
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t logits = 0;      // of how many of its last rows logits are computed
  bool last_of_prompt = false;  // the logits of the last row choose a new token
};

// One sequence from its start to its last token.
struct Sequence {
  SequenceId id = 0;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t prompt_tokens = 0;
  std::int64_t max_new_tokens = 0;
  std::int64_t computed = 0;  // tokens whose keys and values are cached or being computed
  bool prompt_logits = false;
  std::int64_t told = 0;         // prompt tokens whose logits were computed, if they are wanted
  std::int64_t most_blocks = 0;  // that it holds at any time
  std::int32_t priority = 0;
  std::string salt;
  User* user = nullptr;
  std::int64_t place = 0;   // in the order of starting
  std::int64_t reused = 0;  // prompt tokens that the cache had when they were first needed
  std::int64_t pauses = 0;
  kv::BlockTable blocks;

  std::int64_t length() const { return std::int64_t(tokens.size()); }
  std::int64_t left() const { return length() - computed; }
};

// A step holds the next token of every running sequence first, then chunks of prompts in the room
// that is left, so that a long prompt never stalls a running stream for more than one step. Among
// prompts and among those that wait, higher priorities and users that got less come first.
//
// A sequence that does not fit is overtaken by smaller ones behind it, at most kMostOvertaken
// times; then all wait until it fits. Under max_utilization paused sequences resume before any
// other starts, oldest first, and the oldest running one is never paused: all come to an end.
//
// With reuse, a block that a step fills may be shared from that step on: a step writes all keys and
// values of a layer before it reads them. Not thread-safe.
class Scheduler {
 public:
  static constexpr std::int64_t kMostOvertaken = 32;
  static constexpr std::size_t kLookAhead = 64;  // waiting sequences that a step considers

  // The pool must outlive the scheduler.
  Scheduler(const Limits&, kv::BlockPool&, const Policy& = {});

  // Throws InvalidArgument if the sequence can never run: an empty prompt, more tokens than the
  // context or than the whole pool holds. May be called from any thread.
  void check(std::int64_t prompt_tokens, std::int64_t max_new_tokens) const;
  // Checks, and queues the sequence.
  void add(SequenceId, Demand);

  // The shares of the next step, running sequences first; empty if nothing waits. Every share
  // counts as computed from then on.
  std::vector<Share> next();

  // Appends the token chosen after the step that computed the sequence's last token.
  void append(SequenceId, std::int32_t token);
  // Ends a sequence, running or waiting, and frees its blocks. Unknown ids do nothing.
  void remove(SequenceId);

  // One that has started.
  const Sequence& sequence(SequenceId id) const { return started_.at(id); }
  bool has_started(SequenceId id) const { return started_.contains(id); }
  bool idle() const { return started_.empty() && queue_.size() == 0; }
  std::size_t running() const { return order_.size(); }
  std::size_t waiting() const { return queue_.size() + paused_.size(); }
  std::int64_t reused() const { return reused_; }  // prompt tokens of all sequences so far
  std::int64_t pauses() const { return pauses_; }  // of all sequences so far

 private:
  struct Plan;  // of the step at hand

  std::int64_t most_blocks(std::int64_t prompt_tokens, std::int64_t max_new_tokens) const;
  std::int64_t reusable(const Sequence&) const;
  std::int64_t promised() const;
  bool fits(std::int64_t most_blocks, std::int64_t length, kv::BlockTable::Match) const;
  bool fits(const Waiting&) const;
  Sequence* start_next();
  Sequence* resume();
  Sequence& start(const Waiting&);
  void run(Sequence&);
  bool make_room(Sequence&, std::int64_t tokens, Plan&);
  void pause(Sequence&);
  void take(Sequence&, std::int64_t count, std::int64_t logits, Plan&);
  void take_chunk(Sequence&, Plan&);

  Limits limits_;
  kv::BlockPool& pool_;
  Policy policy_;
  FairQueue queue_;
  std::map<SequenceId, Sequence> started_;
  std::vector<Sequence*> order_;  // running, by priority and start
  std::deque<Sequence*> paused_;  // the same
  std::int64_t reserved_ = 0;     // the sum of most_blocks over started_
  std::int64_t next_place_ = 0;
  std::int64_t reused_ = 0;
  std::int64_t pauses_ = 0;
};

}  // namespace ostro::sched
