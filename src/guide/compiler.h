// Guides, compiled for one vocabulary.
#pragma once

#include <chrono>
#include <memory>

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
//
// A thread that was given up may outlive its compiler, and would outlive the process's statics,
// which xgrammar uses: see threads_at_work().
class Compiler {
 public:
  // `vocab` is the model's number of tokens, which may be more than the vocabulary has: those are
  // never allowed. Throws InvalidArgument if it is less.
  Compiler(Vocabulary vocabulary, std::int64_t vocab, CompilerOptions options = {});
  // Waits 3 s at most for what is at work. What is left then ends by itself, or with the process.
  ~Compiler();

  // Milliseconds for common schemas, nothing for what is remembered. Null, at once, if as many
  // others are at work as may. Throws InvalidArgument, with the reason, for a guide that is not
  // valid, not supported, beyond limits.h or beyond the time limit.
  std::shared_ptr<const Grammar> compile(const Guide&);

  // What is remembered of the guide; null if nothing is. Does not wait.
  std::shared_ptr<const Grammar> find(const Guide&);

  // Whether the grammar is for this compiler's vocabulary: it came from here.
  bool made(const Grammar&) const;

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

// Threads of this process that compile a guide. main() must not return while there are some:
// std::_Exit() ends the process and leaves the statics be.
int threads_at_work();

}  // namespace ostro::guide
