// Guides, compiled for one vocabulary.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "guide/guide.h"

namespace ostro::guide {

class Grammar;  // a compiled guide; see matcher.h

struct CompilerOptions {
  std::size_t cache_bytes = std::size_t{128} << 20;
  // Of one guide; xgrammar cannot be broken off: a guide that takes longer is given up, not ended.
  std::chrono::milliseconds time_limit = std::chrono::seconds(10);
  int at_work = 4;  // guides that are compiled at once, those that were given up included
};

// Compiles with xgrammar (Dong et al. 2024, arXiv:2411.15100), each guide on a thread of its own,
// and remembers what it has compiled, also if that was given up meanwhile. Any number of threads
// may ask at once; those that want the same guide wait for one.
class Compiler {
 public:
  // `vocab` is the model's number of tokens, which may be more than the vocabulary has: those are
  // never allowed. Throws InvalidArgument if it is less.
  Compiler(Vocabulary vocabulary, std::int64_t vocab, CompilerOptions options = {});
  ~Compiler();  // waits for what is at work

  // Milliseconds for common schemas, nothing for what is remembered. Null if within the time limit
  // no thread is free for it. Throws InvalidArgument, with the reason, for a guide that is not
  // valid, not supported, beyond limits.h or beyond the time limit.
  std::shared_ptr<const Grammar> compile(const Guide&);

 private:
  struct Tokens;
  struct Work;
  using Clock = std::chrono::steady_clock;
  struct Entry {
    std::shared_ptr<const Grammar> grammar;  // null: it is at work
    std::list<const Guide*>::iterator used;
    std::shared_ptr<Work> work;
  };
  std::shared_ptr<const Grammar> make(const Guide&) const;
  std::shared_ptr<Work> begin(const Guide&);
  void join_ended(std::unique_lock<std::mutex>&);
  void evict();

  const std::unique_ptr<const Tokens> tokens_;
  const CompilerOptions options_;
  std::mutex mutex_;
  std::condition_variable compiled_;  // some work has ended
  int at_work_ = 0;
  std::list<std::thread> threads_;  // at work
  std::list<std::thread> ended_;    // to be joined
  std::map<Guide, Entry> entries_;
  std::list<const Guide*> by_use_;  // of entries with a grammar, the last used first
  std::size_t bytes_ = 0;
};

}  // namespace ostro::guide
