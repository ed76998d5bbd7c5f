// What every tokenizer knows about its tokens, whatever file they came from: the bytes each stands
// for, which are special, and how a list of them becomes text. Filled by the readers of
// tokenizer.model and tokenizer.json, read by Tokenizer and IncrementalDetokenizer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/string_index.h"
#include "text/utf8.h"

namespace ostro::txt {

// Ids stay below this: the largest vocabularies in use have 2^18.
inline constexpr std::int32_t kMostIds = 1 << 22;

// A token that is searched for in the text before the model sees it ("<s>", "[INST]").
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;      // left out of decoded text; found only with parse_special
  bool single_word = false;  // found only between characters that are not of a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = false;   // searched for in the normalized text, in its own normalized form
};

// SentencePiece puts a space before the text that it encodes, so decoding takes one away.
enum class LeadingSpace {
  keep,
  drop_one,
  drop_all_of_first_token,  // what the Metaspace decoder of tokenizer.json does
};

struct DecodeRule {
  LeadingSpace leading_space = LeadingSpace::keep;
  InvalidUtf8 invalid_utf8 = InvalidUtf8::per_sequence;
};

class TokenTable {
 public:
  // Ids reach from 0 to `ids` - 1; until append(), none of them is a token.
  void resize(std::int32_t ids, std::size_t bytes);
  // Gives `id`, which must not have any yet, its bytes.
  void append(std::int32_t id, std::string_view bytes, bool special);
  // `text` is how `id` is written where special tokens are parsed. The first id of a text stays.
  void name(std::int32_t id, std::string_view text);

  std::int32_t size() const { return static_cast<std::int32_t>(entries_.size()); }
  bool contains(std::int32_t id) const { return 0 <= id && id < size() && entries_[id].present; }
  // Empty for an id that is not a token.
  std::string_view bytes(std::int32_t id) const {
    if (!contains(id)) return {};
    const Entry& e = entries_[id];
    return std::string_view(bytes_).substr(e.begin, e.end - e.begin);
  }
  bool is_special(std::int32_t id) const { return contains(id) && entries_[id].special; }
  std::optional<std::int32_t> named(std::string_view text) const;

  std::optional<std::int32_t> bos, eos;
  std::vector<std::int32_t> before, after;  // what add_special_tokens puts around a text
  DecodeRule decode;

 private:
  struct Entry {
    std::uint32_t begin = 0, end = 0;
    bool present = false, special = false;
  };
  std::string bytes_;
  std::vector<Entry> entries_;
  StringIndex names_;
  std::vector<std::int32_t> named_ids_;
};

}  // namespace ostro::txt
