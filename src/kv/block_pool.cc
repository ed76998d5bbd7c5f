#include "kv/block_pool.h"

#include <utility>

#include "base/error.h"
#include "base/math.h"

namespace ostro::kv {

BlockPool::BlockPool(std::int64_t blocks) : owners_(std::size_t(blocks), 0) {
  free_.reserve(std::size_t(blocks));
  for (std::int64_t b = blocks; b > 0; --b) free_.push_back(BlockId(b - 1));
}

std::optional<std::vector<BlockId>> BlockPool::take(std::int64_t n) {
  if (n > free()) return std::nullopt;
  std::vector<BlockId> taken(std::size_t(n), 0);
  for (BlockId& block : taken) {
    block = free_.back();
    free_.pop_back();
    owners_[std::size_t(block)] = 1;
  }
  return taken;
}

void BlockPool::share(BlockId block) {
  OSTRO_CHECK(owners_.at(std::size_t(block)) > 0, "block ", block, " is free and cannot be shared");
  ++owners_[std::size_t(block)];
}

void BlockPool::give_back(BlockId block) {
  OSTRO_CHECK(owners_.at(std::size_t(block)) > 0, "block ", block, " is given back twice");
  if (--owners_[std::size_t(block)] == 0) free_.push_back(block);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : pool_(other.pool_),
      block_tokens_(other.block_tokens_),
      blocks_(std::exchange(other.blocks_, {})),
      released_(std::exchange(other.released_, 0)) {}

bool BlockTable::grow(std::int64_t tokens) {
  const std::int64_t wanted = ceil_div(tokens, block_tokens_) - std::int64_t(blocks_.size());
  if (wanted <= 0) return true;
  const auto taken = pool_->take(wanted);
  if (!taken) return false;
  blocks_.insert(blocks_.end(), taken->begin(), taken->end());
  return true;
}

void BlockTable::release_before(std::int64_t position) {
  while (released_ < blocks_.size() &&
         std::int64_t(released_ + 1) * block_tokens_ <= position) {
    pool_->give_back(blocks_[released_]);
    blocks_[released_++] = -1;
  }
}

void BlockTable::clear() {
  for (std::size_t i = released_; i < blocks_.size(); ++i) pool_->give_back(blocks_[i]);
  blocks_.clear();
  released_ = 0;
}

}  // namespace ostro::kv
