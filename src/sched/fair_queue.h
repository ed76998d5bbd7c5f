// Who starts next: priorities, fair shares between users, and no one overtaken for ever.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace ostro::sched {

using SequenceId = std::int64_t;

// What a new sequence asks for.
struct Demand {
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;
  bool prompt_logits = false;  // of every prompt token, not the last alone
  std::int32_t priority = 0;   // a higher one starts first
  std::string user = {};       // users share the engine by tokens, whatever they queue
  std::string salt = {};       // cached blocks are shared within a salt alone
  std::int32_t width = 1;      // branches that it may be forked into once its prompt is computed
};

// A user's account. Its virtual time is the tokens that were computed for it, moved forward to the
// queue's when it comes back from idleness, so that it cannot save up a claim.
struct User {
  double served_tokens = 0;
  std::int64_t open = 0;  // sequences that wait or run
};

struct Waiting {
  SequenceId id = 0;
  Demand demand;
  std::int64_t most_blocks = 0;  // that it will hold at any time
  User* user = nullptr;
  std::int64_t overtaken = 0;  // times that a later candidate started before it
};

// Start-time fair queueing (Goyal, Vin and Cheng 1996, doi:10.1145/248157.248171) with tokens as
// the work: among the highest priority, the user with the least virtual time comes first, and of
// one user the oldest sequence. The queue's virtual time is what each of the users that have work
// would have got of an equal share: one who comes new starts there, not before those who wait.
// Not thread-safe.
class FairQueue {
 public:
  void push(SequenceId, Demand, std::int64_t most_blocks = 0);
  // The first `most` in the order in which they should start: priority by priority, in each the
  // oldest of every user, then the second oldest of every user ... Valid until the queue changes.
  std::vector<Waiting*> candidates(std::size_t most);
  // Takes one out to start it; its user pays for the prompt tokens that are to be computed.
  Waiting start(SequenceId, std::int64_t tokens);
  // Takes one out that never starts. False if it is not here.
  bool erase(SequenceId);

  // What running sequences cost, and that one of them has ended.
  void charge(User&, std::int64_t tokens);
  void close(User&);

  std::size_t size() const { return size_; }
  // Of all that wait together.
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  std::int64_t most_blocks() const { return most_blocks_; }
  std::size_t users() const { return users_.size(); }

 private:
  using Line = std::map<User*, std::deque<Waiting>>;

  Waiting extract(SequenceId);
  void forget_idle_users();

  std::map<std::string, User> users_;
  std::map<std::int32_t, Line, std::greater<>> lines_;  // by priority
  std::map<SequenceId, std::pair<std::int32_t, User*>> where_;
  double now_ = 0;         // virtual time
  std::int64_t busy_ = 0;  // users that have open sequences
  std::size_t size_ = 0;
  std::int64_t prompt_tokens_ = 0, most_blocks_ = 0;
  std::size_t remembered_users_ = 64;  // more than these: those that owe nothing are forgotten
};

}  // namespace ostro::sched
