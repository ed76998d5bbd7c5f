// Blocks of KV cache: who owns which. Host logic only; the memory is the model's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace ostro::kv {

using BlockId = std::int32_t;

// Every block is free or owned with a count (kv.single_owner); once all owners have given back,
// every block is free (kv.no_leak). Not thread-safe.
class BlockPool {
 public:
  explicit BlockPool(std::int64_t blocks);

  // n blocks with one owner each; empty, and nothing taken, if fewer are free.
  std::optional<std::vector<BlockId>> take(std::int64_t n);
  void share(BlockId);      // one owner more
  void give_back(BlockId);  // one owner less; free at zero

  std::int64_t total() const { return std::int64_t(owners_.size()); }
  std::int64_t free() const { return std::int64_t(free_.size()); }

 private:
  std::vector<std::int32_t> owners_;  // of each block
  std::vector<BlockId> free_;         // last given back, first taken: its memory is warm
};

// The blocks of one sequence, by position. Gives back what it owns when it is destroyed.
class BlockTable {
 public:
  BlockTable(BlockPool& pool, std::int64_t block_tokens)
      : pool_(&pool), block_tokens_(block_tokens) {}
  ~BlockTable() { clear(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&&) = delete;

  // Makes room for positions [0, tokens). False, and nothing changed, if the pool has too few.
  bool grow(std::int64_t tokens);
  // Gives back the blocks that hold positions below `position` only; their entries become -1.
  void release_before(std::int64_t position);
  void clear();

  // Block of positions [i * block_tokens, (i + 1) * block_tokens); -1 if given back.
  const std::vector<BlockId>& blocks() const { return blocks_; }

 private:
  BlockPool* pool_;
  std::int64_t block_tokens_;
  std::vector<BlockId> blocks_;
  std::size_t released_ = 0;  // leading entries that are -1
};

}  // namespace ostro::kv
