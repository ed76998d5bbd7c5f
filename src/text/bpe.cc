#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <span>

#include "base/error.h"
#include "text/utf8.h"

namespace ostro::txt {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

std::string byte_token(unsigned byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

std::string utf8_below_0x200(unsigned code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

BpeModel::MergeTable::MergeTable(std::size_t merges)
    : shift_(64 - std::countr_zero(std::bit_ceil(2 * merges + 2))),
      slots_(std::bit_ceil(2 * merges + 2)) {}

std::size_t BpeModel::MergeTable::slot_of(std::uint64_t pair) const {
  // Fibonacci hashing: the high bits of the product depend on all bits of the pair.
  std::size_t i = (pair * 0x9E3779B97F4A7C15u) >> shift_;
  while (slots_[i].pair != pair && slots_[i].pair != ~0ull) i = (i + 1) & (slots_.size() - 1);
  return i;
}

void BpeModel::MergeTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {pair, merge};
}

BpeModel::Merge BpeModel::MergeTable::find(std::int32_t left, std::int32_t right) const {
  return slots_[slot_of(pair_of(left, right))].merge;
}

BpeModel::BpeModel(StringIndex tokens, std::vector<std::int32_t> ids,
                   const std::vector<BpeMerge>& merges, BpeSettings settings)
    : tokens_(std::move(tokens)),
      ids_(std::move(ids)),
      settings_(std::move(settings)),
      merges_(merges.size()) {
  for (unsigned b = 0; b < byte_ids_.size(); ++b) byte_ids_[b] = id_of(byte_token(b)).value_or(-1);
  for (unsigned c = 0; c < small_char_ids_.size(); ++c) {
    small_char_ids_[c] = id_of(utf8_below_0x200(c)).value_or(-1);
  }
  if (settings_.unk_token) unk_id_ = id_of(*settings_.unk_token).value_or(-1);
  add_merges(merges);
  find_safe_cuts(merges);
}

void BpeModel::add_merges(const std::vector<BpeMerge>& merges) {
  std::string joined;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined.assign(left).append(right);
    std::int32_t merge_ids[3];
    const std::string_view names[] = {left, right, joined};
    for (int i = 0; i < 3; ++i) {
      const auto id = id_of(names[i]);
      OSTRO_REQUIRE(id, "merge ", rank, " (\"", left, "\" and \"", right, "\") needs the token \"",
                    names[i], "\", which the vocabulary does not have");
      merge_ids[i] = *id;
    }
    merges_.set(merge_ids[0], merge_ids[1], {static_cast<std::int32_t>(rank), merge_ids[2]});
  }
}

void BpeModel::find_safe_cuts(const std::vector<BpeMerge>& merges) {
  // A character that vanishes would make neighbours of what it stood between.
  const bool all_bytes = settings_.byte_fallback && std::ranges::min(byte_ids_) >= 0;
  if (!id_of(kSpace) || !(settings_.unk_token || all_bytes)) return;
  // These may stand for other characters than those they are spelled with.
  const auto is_stand_in = [&](std::string_view token) {
    return token == settings_.unk_token ||
           (token.size() == 6 && token.starts_with("<0x") && token.ends_with('>'));
  };
  for (const auto& [left, right] : merges) {
    if (is_stand_in(left) || is_stand_in(right)) return;
  }
  cut_after_.fill(true);
  for (std::uint32_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view token = tokens_[i];
    for (std::size_t at = token.find(kSpace, 1); at < token.size();
         at = token.find(kSpace, at + 1)) {
      cut_after_[static_cast<unsigned char>(token[at - 1])] = false;
    }
  }
}

std::optional<std::int32_t> BpeModel::id_of(std::string_view token) const {
  const std::uint32_t number = tokens_.find(token);
  if (number == StringIndex::kAbsent) return std::nullopt;
  return ids_[number];
}

std::int32_t BpeModel::char_id(std::string_view character) const {
  if (character.size() <= 2) {
    const char32_t code = utf8_code_point(character);
    if (code < small_char_ids_.size()) return small_char_ids_[code];
  }
  return id_of(character).value_or(-1);
}

void BpeModel::encode(std::string_view word, Workspace& workspace,
                      std::vector<std::int32_t>& ids) const {
  if (settings_.ignore_merges) {
    if (const auto id = id_of(word)) {
      ids.push_back(*id);
      return;
    }
  }
  for (std::size_t begin = 0; begin < word.size();) {
    const std::size_t end = safe_cut(word, begin);
    encode_part(word.substr(begin, end - begin), workspace, ids);
    begin = end;
  }
}

// The next boundary after `from` that no merge can cross, or the end.
std::size_t BpeModel::safe_cut(std::string_view text, std::size_t from) const {
  std::size_t at = from;
  while ((at = text.find(kSpace[0], at + 1)) != std::string_view::npos) {
    if (text.substr(at).starts_with(kSpace) &&
        cut_after_[static_cast<unsigned char>(text[at - 1])]) {
      return at;
    }
  }
  return text.size();
}

void BpeModel::encode_part(std::string_view part, Workspace& workspace,
                           std::vector<std::int32_t>& ids) const {
  if (const auto known = workspace.words.find(part)) {
    ids.insert(ids.end(), known->begin(), known->end());
    return;
  }
  to_symbols(part, workspace);
  merge(workspace);
  const std::size_t first = ids.size();
  for (std::int32_t i = workspace.symbols.empty() ? -1 : 0; i >= 0;) {
    ids.push_back(workspace.symbols[i].id);
    i = workspace.symbols[i].next;
  }
  workspace.words.remember(part, std::span(ids).subspan(first));
}

bool BpeModel::byte_tokens(std::string_view character, Workspace& workspace) const {
  for (char c : character) {
    if (byte_ids_[static_cast<unsigned char>(c)] < 0) return false;
  }
  for (char c : character) {
    workspace.symbols.push_back({byte_ids_[static_cast<unsigned char>(c)], 0, 0});
  }
  return true;
}

void BpeModel::to_symbols(std::string_view part, Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  symbols.clear();
  // An unknown character waits here: the next one may fuse with it.
  bool unknown = false;
  const auto flush = [&] {
    if (unknown) symbols.push_back({unk_id_, 0, 0});
    unknown = false;
  };
  while (!part.empty()) {
    const std::string_view character = part.substr(0, next_utf8(part).bytes);
    part.remove_prefix(character.size());
    const std::int32_t id = char_id(character);
    if (id >= 0) {
      flush();
      symbols.push_back({id, 0, 0});
    } else if (settings_.byte_fallback && byte_tokens(character, workspace)) {
      continue;
    } else if (settings_.unk_token) {
      OSTRO_REQUIRE(unk_id_ >= 0, '"', character,
                    "\" has no token, and neither has the unk_token \"", *settings_.unk_token, '"');
      if (!settings_.fuse_unk) flush();
      unknown = true;
    }
  }
  flush();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<std::int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<std::int32_t>(i) + 1 : -1;
  }
}

void BpeModel::merge(Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  auto& queue = workspace.queue;
  queue.clear();
  const auto candidate = [&](std::int32_t left, std::int32_t right) {
    const Merge m = merges_.find(symbols[left].id, symbols[right].id);
    if (m.rank < 0) return false;
    queue.push_back(
        {static_cast<std::uint64_t>(m.rank) << 32 | static_cast<std::uint32_t>(left), m.id});
    return true;
  };
  for (std::int32_t i = 0; i + 1 < static_cast<std::int32_t>(symbols.size()); ++i) {
    candidate(i, i + 1);
  }
  std::make_heap(queue.begin(), queue.end());
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end());
    const auto [rank_and_position, id] = queue.back();
    queue.pop_back();
    // The pair may have changed since: id -1 is a symbol that went into its left neighbour.
    Workspace::Symbol& left = symbols[static_cast<std::uint32_t>(rank_and_position)];
    if (left.id < 0 || left.next < 0) continue;
    Workspace::Symbol& right = symbols[left.next];
    if (merges_.find(left.id, right.id).id != id) continue;
    const auto position = static_cast<std::int32_t>(&left - symbols.data());
    left.id = id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = position;
    if (left.previous >= 0 && candidate(left.previous, position)) {
      std::push_heap(queue.begin(), queue.end());
    }
    if (left.next >= 0 && candidate(position, left.next)) {
      std::push_heap(queue.begin(), queue.end());
    }
  }
}

}  // namespace ostro::txt
