// What tokenizer.json does to a text before the model: the normalizer rewrites it, the
// pre-tokenizer cuts it into words. Both are lists of steps, and only of the kinds below.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"

namespace ostro::txt {

// Puts `text` before what is not empty.
struct Prepend {
  std::string text;
};
struct Replace {
  std::string from, to;  // `from` is not empty
};

std::string replace_all(std::string_view text, const Replace& replace);

struct Normalizer {
  std::vector<std::variant<Prepend, Replace>> steps;
  std::string operator()(std::string_view text) const;
};

// Spaces become `replacement`, and one is put before a text that does not begin with it.
struct Metaspace {
  enum class Prefix { always, first, never };  // first: only where the whole text begins
  std::string replacement;
  Prefix prefix = Prefix::always;
  bool split = true;  // into words that begin with `replacement`
};

// Cuts at the matches of a pattern.
struct Split {
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  Regex pattern;
  Behavior behavior = Behavior::isolated;
  bool invert = false;  // what does not match counts as the match
};

// Cuts with `split`, if any, and writes each byte as a visible character.
struct ByteLevel {
  bool add_prefix_space = false;
  std::optional<Split> split = std::nullopt;
};

struct PreTokenizer {
  std::vector<std::variant<Metaspace, Split, ByteLevel>> steps;

  using Emit = std::function<void(std::string_view word)>;
  // Calls emit with each word, none of them empty. `at_start`: the whole text begins here.
  void run(std::string_view text, bool at_start, const Emit& emit) const {
    run(0, text, at_start, emit);
  }

 private:
  void run(std::size_t step, std::string_view text, bool at_start, const Emit& emit) const;
};

// The pattern of GPT-2, which ByteLevel uses by itself.
Split gpt2_split();

// ByteLevel's characters: one for each byte, U+0021 to U+0143. The second is the bytes of a text of
// such characters, or nothing if it has another.
std::string byte_level_encode(std::string_view bytes);
std::optional<std::string> byte_level_decode(std::string_view text);

}  // namespace ostro::txt
