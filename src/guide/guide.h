// What a generated text must look like, and the vocabulary that it is made of.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ostro::guide {

enum class Kind {
  json_object,  // any JSON object; no text
  json_schema,  // JSON that fits the JSON schema `text`
  regex,        // the whole output matches the regular expression `text` (ECMAScript's syntax)
  grammar,      // a sentence of the EBNF grammar `text`, whose first rule is "root"
  choice,       // one of the strings of the JSON list `text`
};

struct Guide {
  Kind kind = Kind::json_object;
  std::string text = {};
  bool at_start =
      false;  // the output begins a text: Vocabulary::at_start holds for its first token
  bool any_spaces = true;  // of JSON; false: one after each comma and colon, and no other
  auto operator<=>(const Guide&) const = default;
};

struct Vocabulary {
  // [tokens] The bytes that each stands for; empty for those that a guided text never holds.
  std::vector<std::string> bytes = {};
  // Tokens that stand for other bytes where a text begins: SentencePiece drops a space there.
  std::vector<std::pair<std::int32_t, std::string>> at_start = {};
};

}  // namespace ostro::guide
