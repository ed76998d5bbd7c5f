// The words that one call of encode() has met and their tokens: most words of a text recur.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "text/string_index.h"

namespace ostro::txt {

class WordMemory {
 public:
  // The tokens of a word that was remembered. Valid until the next remember().
  std::optional<std::span<const std::int32_t>> find(std::string_view word) const {
    const std::uint32_t number = words_.find(word);
    if (number == StringIndex::kAbsent) return std::nullopt;
    const std::size_t begin = number == 0 ? 0 : ends_[number - 1];
    return std::span(ids_).subspan(begin, ends_[number] - begin);
  }

  // `word` must be new. Long words, and any after a great many, are forgotten at once.
  void remember(std::string_view word, std::span<const std::int32_t> ids) {
    if (word.size() > kLongest || words_.size() == kMost) return;
    words_.insert(word);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    ends_.push_back(ids_.size());
  }

 private:
  static constexpr std::size_t kLongest = 64;    // longer ones hardly recur
  static constexpr std::size_t kMost = 1 << 17;  // about 10 MB

  StringIndex words_;
  std::vector<std::int32_t> ids_;
  std::vector<std::size_t> ends_;  // of each word's tokens in ids_
};

}  // namespace ostro::txt
