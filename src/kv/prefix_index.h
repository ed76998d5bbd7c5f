// Which blocks of the KV cache hold which beginnings of sequences.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ostro::kv {

using BlockId = std::int32_t;

// A beginning of sequences, in whole blocks: never given to another one, so that a name outlives
// its block harmlessly. 0 is the empty beginning.
using PrefixId = std::uint64_t;

// A tree whose edges are the tokens of one full block. Tokens are compared, not only their hash:
// no two prompts can be taken for each other. Beginnings of different salts are different. Not
// thread-safe.
class PrefixIndex {
 public:
  explicit PrefixIndex(std::int64_t blocks) : nodes_(std::size_t(blocks)) {}

  // The block that continues `parent` with `tokens`, if one is known. `salt` counts at parent 0.
  std::optional<BlockId> find(PrefixId parent, std::string_view salt,
                              std::span<const std::int32_t> tokens) const;
  // Names what `block` holds; it must have no name, and nothing may be known for it by find().
  PrefixId insert(BlockId block, PrefixId parent, std::string_view salt,
                  std::span<const std::int32_t> tokens);
  // Forgets what the block holds. What continued it can no longer be found.
  void erase(BlockId);

  // The beginning that ends with this block; 0 if it has no name.
  PrefixId id(BlockId block) const { return nodes_[std::size_t(block)].id; }
  std::size_t size() const { return by_hash_.size(); }

 private:
  struct Node {
    PrefixId id = 0;
    PrefixId parent = 0;
    std::uint64_t hash = 0;
    std::string salt;  // at parent 0
    std::vector<std::int32_t> tokens;
  };

  std::vector<Node> nodes_;  // of each block
  std::unordered_multimap<std::uint64_t, BlockId> by_hash_;
  PrefixId next_id_ = 1;
};

}  // namespace ostro::kv
