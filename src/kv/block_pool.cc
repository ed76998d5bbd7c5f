#include "kv/block_pool.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/math.h"

namespace ostro::kv {

BlockPool::BlockPool(std::int64_t blocks)
    : index_(blocks),
      owners_(std::size_t(blocks), 0),
      next_(std::size_t(blocks) + 1, BlockId(blocks)),
      previous_(std::size_t(blocks) + 1, BlockId(blocks)) {
  free_.reserve(std::size_t(blocks));
  for (std::int64_t b = blocks; b > 0; --b) free_.push_back(BlockId(b - 1));
}

void BlockPool::link_newest(BlockId block) {
  const auto end = BlockId(total());
  const BlockId newest = previous_[std::size_t(end)];
  next_[std::size_t(newest)] = previous_[std::size_t(end)] = block;
  next_[std::size_t(block)] = end;
  previous_[std::size_t(block)] = newest;
  ++cached_;
}

void BlockPool::unlink(BlockId block) {
  const BlockId before = previous_[std::size_t(block)], after = next_[std::size_t(block)];
  next_[std::size_t(before)] = after;
  previous_[std::size_t(after)] = before;
  --cached_;
}

std::optional<std::vector<BlockId>> BlockPool::take(std::int64_t n) {
  if (n > available()) return std::nullopt;
  std::vector<BlockId> taken(std::size_t(n), 0);
  for (BlockId& block : taken) {
    if (free_.empty()) {
      block = next_[std::size_t(total())];
      unlink(block);
      index_.erase(block);
    } else {
      block = free_.back();
      free_.pop_back();
    }
    owners_[std::size_t(block)] = 1;
  }
  return taken;
}

void BlockPool::share(BlockId block) {
  const bool owned = owners_.at(std::size_t(block)) > 0;
  OSTRO_CHECK(owned || index_.id(block) != 0, "block ", block, " is free and cannot be shared");
  if (!owned) unlink(block);
  ++owners_[std::size_t(block)];
}

void BlockPool::give_back(BlockId block) {
  OSTRO_CHECK(owners_.at(std::size_t(block)) > 0, "block ", block, " is given back twice");
  if (--owners_[std::size_t(block)] > 0) return;
  if (index_.id(block) != 0)
    link_newest(block);
  else
    free_.push_back(block);
}

PrefixId BlockPool::publish(BlockId block, PrefixId parent, std::string_view salt,
                            std::span<const std::int32_t> tokens) {
  OSTRO_CHECK(owners(block) > 0, "block ", block, " has no owner and cannot be published");
  if (const auto known = index_.find(parent, salt, tokens)) return index_.id(*known);
  return index_.insert(block, parent, salt, tokens);
}

void BlockPool::check() const {
  std::vector<char> seen(owners_.size(), 0);
  const auto once = [&](BlockId block, bool named) {
    OSTRO_CHECK(owners_.at(std::size_t(block)) == 0 && !seen[std::size_t(block)]++ &&
                    (index_.id(block) != 0) == named,
                "block ", block, " is free or cached, with ", owners_[std::size_t(block)],
                " owners and prefix ", index_.id(block));
  };
  for (BlockId block : free_) once(block, false);
  std::int64_t cached = 0;
  for (BlockId b = next_[owners_.size()]; b != BlockId(total()); b = next_[std::size_t(b)]) {
    once(b, true);
    ++cached;
  }
  std::size_t names = 0;
  for (std::size_t b = 0; b < owners_.size(); ++b) {
    names += index_.id(BlockId(b)) != 0;
    OSTRO_CHECK((owners_[b] > 0) != bool(seen[b]), "block ", b, " has ", owners_[b], " owners");
  }
  OSTRO_CHECK(cached == cached_ && names == index_.size(), cached, " blocks cached, ", cached_,
              " counted; ", names, " named, ", index_.size(), " indexed");
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : pool_(other.pool_),
      block_tokens_(other.block_tokens_),
      blocks_(std::exchange(other.blocks_, {})),
      released_(std::exchange(other.released_, 0)),
      named_(std::exchange(other.named_, 0)),
      prefix_(std::exchange(other.prefix_, 0)) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  clear();
  pool_ = other.pool_;
  block_tokens_ = other.block_tokens_;
  blocks_ = std::exchange(other.blocks_, {});
  released_ = std::exchange(other.released_, 0);
  named_ = std::exchange(other.named_, 0);
  prefix_ = std::exchange(other.prefix_, 0);
  return *this;
}

BlockTable BlockTable::fork(std::size_t blocks) const {
  blocks = std::min(blocks, blocks_.size());
  BlockTable other(*pool_, block_tokens_);
  other.blocks_.assign(blocks_.begin(), blocks_.begin() + std::ptrdiff_t(blocks));
  other.released_ = std::min(released_, blocks);
  for (std::size_t i = other.released_; i < blocks; ++i) pool_->share(blocks_[i]);
  // A shorter beginning has a name of its own, which nobody needs.
  if (named_ <= blocks) {
    other.named_ = named_;
    other.prefix_ = prefix_;
  }
  return other;
}

bool BlockTable::own(std::int64_t position, std::vector<BlockCopy>& copies) {
  BlockId& block = blocks_.at(std::size_t(position / block_tokens_));
  if (pool_->owners(block) == 1) return true;
  const auto taken = pool_->take(1);
  if (!taken) return false;
  copies.push_back({.from = block, .to = taken->front()});
  pool_->give_back(block);
  block = taken->front();
  return true;
}

bool BlockTable::grow(std::int64_t tokens) {
  const std::int64_t wanted = ceil_div(tokens, block_tokens_) - std::int64_t(blocks_.size());
  if (wanted <= 0) return true;
  const auto taken = pool_->take(wanted);
  if (!taken) return false;
  blocks_.insert(blocks_.end(), taken->begin(), taken->end());
  return true;
}

std::int64_t BlockTable::shared() const {
  return std::count_if(blocks_.begin() + std::ptrdiff_t(released_), blocks_.end(),
                       [&](BlockId block) { return pool_->owners(block) > 1; });
}

void BlockTable::release_before(std::int64_t position) {
  while (released_ < blocks_.size() && std::int64_t(released_ + 1) * block_tokens_ <= position) {
    pool_->give_back(blocks_[released_]);
    blocks_[released_++] = -1;
  }
}

// The last block first: of a beginning that nobody uses the end is forgotten before what it needs.
void BlockTable::clear() {
  for (std::size_t i = blocks_.size(); i > released_; --i) pool_->give_back(blocks_[i - 1]);
  blocks_.clear();
  released_ = named_ = 0;
  prefix_ = 0;
}

template <class F>
void BlockTable::for_each_match(std::span<const std::int32_t> tokens, std::int64_t most,
                                std::string_view salt, F&& found) const {
  if (named_ < blocks_.size()) return;
  const auto size = std::size_t(block_tokens_);
  const std::size_t end = std::min(tokens.size(), std::size_t(std::max<std::int64_t>(most, 0)));
  PrefixId prefix = prefix_;
  for (std::size_t at = blocks_.size() * size; at + size <= end; at += size) {
    const auto block = pool_->index().find(prefix, salt, tokens.subspan(at, size));
    if (!block) return;
    prefix = pool_->index().id(*block);
    found(*block, prefix);
  }
}

BlockTable::Match BlockTable::match(std::span<const std::int32_t> tokens, std::int64_t most,
                                    std::string_view salt) const {
  Match m;
  for_each_match(tokens, most, salt, [&](BlockId block, PrefixId) {
    ++m.blocks;
    m.cached += pool_->owners(block) == 0;
    m.shared += pool_->owners(block) > 1;
  });
  return m;
}

std::int64_t BlockTable::reuse(std::span<const std::int32_t> tokens, std::int64_t most,
                               std::string_view salt) {
  std::vector<std::pair<BlockId, PrefixId>> known;
  for_each_match(tokens, most, salt, [&](BlockId block, PrefixId prefix) {
    known.push_back({block, prefix});
  });
  for (const auto& [block, prefix] : known) {
    pool_->share(block);
    blocks_.push_back(block);
    prefix_ = prefix;
    ++named_;
  }
  return std::int64_t(known.size()) * block_tokens_;
}

void BlockTable::publish(std::span<const std::int32_t> tokens, std::int64_t computed,
                         std::string_view salt) {
  const auto size = std::size_t(block_tokens_);
  for (; std::int64_t((named_ + 1) * size) <= computed; ++named_) {
    // A block that is given back before it could be named ends what can be known of the sequence.
    if (blocks_.at(named_) < 0) return;
    prefix_ = pool_->publish(blocks_[named_], prefix_, salt, tokens.subspan(named_ * size, size));
  }
}

}  // namespace ostro::kv
