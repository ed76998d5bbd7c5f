// UTF-8 as the rest of this folder needs it: stepping, checking, and replacing what is not UTF-8.
//
// A sequence that is not UTF-8 becomes U+FFFD. How many of them is a rule:
//   per_sequence  one for each maximal prefix of a character (Unicode's advice; Python's
//                 errors="replace", Rust's from_utf8_lossy)
//   per_byte      one for each byte (SentencePiece)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ostro::txt {

enum class InvalidUtf8 { per_sequence, per_byte };

struct Utf8Step {
  enum Kind : std::uint8_t { valid, invalid, incomplete };
  Kind kind;
  std::uint8_t bytes;
};

// What `text`, which is not empty, begins with: a character; the longest prefix of one (at least
// one byte) that what follows rules out; or, up to the end of `text`, the beginning of a character.
Utf8Step next_utf8(std::string_view text);

// The code point of one valid character.
char32_t utf8_code_point(std::string_view character);

// True if `text` is UTF-8 from end to end.
bool is_utf8(std::string_view text);

// `text` with what is not UTF-8 replaced, per_sequence.
std::string replace_invalid_utf8(std::string_view text);

// The characters with Unicode's White_Space property.
bool is_white_space(char32_t code_point);

// Bytes in, in pieces cut anywhere; UTF-8 out, as soon as it is certain.
//
//   Utf8Repair repair(InvalidUtf8::per_sequence);
//   repair.feed("\xE2\x82", out);  // nothing yet
//   repair.feed("\xAC!", out);     // out is "€!"
class Utf8Repair {
 public:
  explicit Utf8Repair(InvalidUtf8 rule) : rule_(rule) {}
  void feed(std::string_view bytes, std::string& out);
  // What is held back was not UTF-8 after all. The object is then as new.
  void finish(std::string& out);

 private:
  void replace(std::size_t bytes, std::string& out) const;

  InvalidUtf8 rule_;
  std::string held_;  // the beginning of a character, at most 3 bytes
};

}  // namespace ostro::txt
