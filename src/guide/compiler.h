// Guides, compiled for one vocabulary.
#pragma once

#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "guide/guide.h"

namespace ostro::guide {

class Grammar;  // a compiled guide; see matcher.h

// Compiles with xgrammar (Dong et al. 2024, arXiv:2411.15100) and remembers what it has compiled.
// Any number of threads may compile at once; those that want the same guide wait for one of them.
class Compiler {
 public:
  // `vocab` is the model's number of tokens, which may be more than the vocabulary has: those are
  // never allowed. Throws InvalidArgument if it is less.
  Compiler(Vocabulary vocabulary, std::int64_t vocab,
           std::size_t cache_bytes = std::size_t{128} << 20);
  ~Compiler();

  // Milliseconds for common schemas, nothing for what is remembered. Throws InvalidArgument, with
  // the reason, for a guide that is not valid, not supported or beyond limits.h.
  std::shared_ptr<const Grammar> compile(const Guide&);

 private:
  struct Tokens;
  struct Entry {
    std::shared_ptr<const Grammar> grammar;  // null: some thread compiles it
    std::list<const Guide*>::iterator used;
  };
  std::shared_ptr<const Grammar> make(const Guide&) const;
  void evict();

  const std::unique_ptr<const Tokens> tokens_;
  const std::size_t cache_bytes_;
  std::mutex mutex_;
  std::condition_variable compiled_;
  std::map<Guide, Entry> entries_;
  std::list<const Guide*> by_use_;  // of entries with a grammar, the last used first
  std::size_t bytes_ = 0;
};

}  // namespace ostro::guide
