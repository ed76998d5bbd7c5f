// Finds special and added tokens in a text, before the model sees the rest of it.
//
// The leftmost match counts, of those that begin together the longest, as in Hugging Face's
// tokenizers. One pass, whatever the number of tokens.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "text/regex.h"
#include "text/token_table.h"

namespace ostro::txt {

class AddedTokens {
 public:
  // Searches for the contents as they are, or for pattern(content).
  explicit AddedTokens(std::vector<AddedToken> tokens,
                       const std::function<std::string(std::string_view)>& pattern = {});

  // A token, or with id -1 a stretch of text between tokens.
  struct Part {
    std::int32_t id;
    std::size_t begin, end;
  };
  // The whole of `text`, in order, in parts that are not empty. Special tokens count as text unless
  // parse_special.
  std::vector<Part> split(std::string_view text, bool parse_special) const;

 private:
  struct Node {
    std::int32_t token = -1;  // index into tokens_
    std::vector<std::pair<char, std::int32_t>> next;
  };
  struct Match {
    std::int32_t token;
    std::size_t bytes;
  };
  void add(std::int32_t token, std::string_view pattern);
  std::optional<Match> match_at(std::string_view text) const;  // at its beginning
  bool is_single_word(std::string_view text, std::size_t begin, std::size_t end) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> begins_{};  // bytes that a pattern begins with
  std::optional<Regex> word_char_;  // only if a token is single_word
};

}  // namespace ostro::txt
