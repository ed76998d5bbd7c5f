#include "kv/prefix_index.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace ostro::kv {
namespace {

// Only spreads the entries: equality is decided by the tokens.
std::uint64_t hash_of(PrefixId parent, std::string_view salt,
                      std::span<const std::int32_t> tokens) {
  std::uint64_t h = parent * 0x9e3779b97f4a7c15u + std::hash<std::string_view>{}(salt);
  for (std::int32_t token : tokens) {
    h = (h ^ std::uint32_t(token)) * 0xbf58476d1ce4e5b9u;
    h ^= h >> 29;
  }
  return h;
}

std::string_view salt_at(PrefixId parent, std::string_view salt) {
  return parent == 0 ? salt : std::string_view{};
}

}  // namespace

std::optional<BlockId> PrefixIndex::find(PrefixId parent, std::string_view salt,
                                         std::span<const std::int32_t> tokens) const {
  salt = salt_at(parent, salt);
  const auto [first, last] = by_hash_.equal_range(hash_of(parent, salt, tokens));
  for (auto it = first; it != last; ++it) {
    const Node& node = nodes_[std::size_t(it->second)];
    if (node.parent == parent && node.salt == salt && std::ranges::equal(node.tokens, tokens))
      return it->second;
  }
  return std::nullopt;
}

PrefixId PrefixIndex::insert(BlockId block, PrefixId parent, std::string_view salt,
                             std::span<const std::int32_t> tokens) {
  Node& node = nodes_.at(std::size_t(block));
  OSTRO_CHECK(node.id == 0, "block ", block, " already ends prefix ", node.id);
  salt = salt_at(parent, salt);
  node.id = next_id_++;
  node.parent = parent;
  node.hash = hash_of(parent, salt, tokens);
  node.salt = salt;
  node.tokens.assign(tokens.begin(), tokens.end());
  by_hash_.emplace(node.hash, block);
  return node.id;
}

void PrefixIndex::erase(BlockId block) {
  Node& node = nodes_.at(std::size_t(block));
  const auto [first, last] = by_hash_.equal_range(node.hash);
  const auto it = std::find_if(first, last, [&](const auto& e) { return e.second == block; });
  OSTRO_CHECK(node.id != 0 && it != last, "block ", block, " has no name");
  by_hash_.erase(it);
  node.id = 0;
}

}  // namespace ostro::kv
