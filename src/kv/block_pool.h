// Blocks of KV cache: who owns which, and what of a sequence that ended is worth keeping. Host
// logic only; the memory is the model's.
//
//   BlockTable table(pool, 64);
//   table.reuse(tokens, salt);              // what another sequence has computed already
//   if (!table.grow(positions)) ...         // the pool is full
//   table.publish(tokens, positions, salt); // full blocks may be shared from now on
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kv/prefix_index.h"

namespace ostro::kv {

// Every block is free, cached (no owner, but its content has a name in the index) or owned with a
// count (kv.single_owner); once all owners have given back, free() + cached() = total()
// (kv.no_leak). Not thread-safe.
class BlockPool {
 public:
  explicit BlockPool(std::int64_t blocks);

  // n blocks with one owner each, free ones first, then the cached ones that have had no owner for
  // longest, whose content is forgotten. Empty, and nothing taken, if fewer are available.
  std::optional<std::vector<BlockId>> take(std::int64_t n);
  void share(BlockId);      // one owner more, of an owned or cached block
  void give_back(BlockId);  // one owner less; at zero it is cached if it has a name, else free

  // What an owned block holds: `tokens` after the beginning `parent`. The name under which the
  // beginning is known, which may be that of another block that holds the same.
  PrefixId publish(BlockId, PrefixId parent, std::string_view salt,
                   std::span<const std::int32_t> tokens);
  const PrefixIndex& index() const { return index_; }

  std::int64_t total() const { return std::int64_t(owners_.size()); }
  std::int64_t free() const { return std::int64_t(free_.size()); }
  std::int64_t cached() const { return cached_; }
  std::int64_t available() const { return free() + cached(); }
  std::int32_t owners(BlockId block) const { return owners_.at(std::size_t(block)); }

  // Throws InternalError unless the counts above agree with each other block by block.
  void check() const;

 private:
  void link_newest(BlockId);
  void unlink(BlockId);

  PrefixIndex index_;
  std::vector<std::int32_t> owners_;  // of each block
  std::vector<BlockId> free_;         // last given back, first taken: its memory is warm
  // Cached blocks as a ring, entry total() its end: next[end] had no owner for longest.
  std::vector<BlockId> next_, previous_;
  std::int64_t cached_ = 0;
};

// The content of one block that another is to hold too.
struct BlockCopy {
  BlockId from = 0;
  BlockId to = 0;
};

// The blocks of one sequence, by position. Gives back what it owns when it is destroyed.
class BlockTable {
 public:
  BlockTable(BlockPool& pool, std::int64_t block_tokens)
      : pool_(&pool), block_tokens_(block_tokens) {}
  ~BlockTable() { clear(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  // A table that holds the first `blocks` blocks of this one too, all of them if there are fewer.
  BlockTable fork(std::size_t blocks) const;
  BlockTable fork() const { return fork(blocks_.size()); }

  // Makes room for positions [0, tokens). False, and nothing changed, if the pool has too few.
  bool grow(std::int64_t tokens);
  // Before something is written at `position`: gives this table a block of its own there, if the
  // one it has is another's too, and adds to `copies` what that must hold (copy on write). False,
  // and nothing changed, if the pool has no block.
  bool own(std::int64_t position, std::vector<BlockCopy>& copies);
  // Gives back the blocks that hold positions below `position` only; their entries become -1.
  void release_before(std::int64_t position);
  void clear();

  // Adds the known blocks that continue the ones here with `tokens` (of the whole sequence), where
  // these are full; at most those of positions [0, most). Returns the positions held then.
  // Nothing happens unless every block here has a name.
  std::int64_t reuse(std::span<const std::int32_t> tokens, std::int64_t most,
                     std::string_view salt);
  // How many more blocks reuse() would add, and how many of them have no owner now, and several.
  struct Match {
    std::int64_t blocks = 0;
    std::int64_t cached = 0;
    std::int64_t shared = 0;
  };
  Match match(std::span<const std::int32_t> tokens, std::int64_t most, std::string_view salt) const;
  // Names the full blocks among positions [0, computed), which hold `tokens`.
  void publish(std::span<const std::int32_t> tokens, std::int64_t computed, std::string_view salt);

  // Block of positions [i * block_tokens, (i + 1) * block_tokens); -1 if given back.
  const std::vector<BlockId>& blocks() const { return blocks_; }
  std::int64_t held() const { return std::int64_t(blocks_.size() - released_); }
  std::int64_t shared() const;  // of those, how many have another owner too

 private:
  template <class F>
  void for_each_match(std::span<const std::int32_t> tokens, std::int64_t most,
                      std::string_view salt, F&& found) const;

  BlockPool* pool_;
  std::int64_t block_tokens_;
  std::vector<BlockId> blocks_;
  std::size_t released_ = 0;  // leading entries that are -1
  std::size_t named_ = 0;     // leading entries that are published
  PrefixId prefix_ = 0;       // the beginning that these make
};

}  // namespace ostro::kv
