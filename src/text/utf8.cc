#include "text/utf8.h"

#include <algorithm>
#include <cstring>

namespace ostro::txt {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The number of leading bytes of `text` that are ASCII.
std::size_t ascii_prefix(std::string_view text) {
  constexpr std::uint64_t kHighBits = 0x8080808080808080u;
  std::size_t i = 0;
  for (std::uint64_t word; i + sizeof word <= text.size(); i += sizeof word) {
    std::memcpy(&word, text.data() + i, sizeof word);
    if (word & kHighBits) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

Utf8Step next_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Step::valid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::invalid, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what is over U+10FFFF.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i == text.size()) return {Utf8Step::incomplete, static_cast<std::uint8_t>(i)};
    if (byte(i) < low || byte(i) > high) {
      return {Utf8Step::invalid, static_cast<std::uint8_t>(i)};
    }
  }
  return {Utf8Step::valid, static_cast<std::uint8_t>(length)};
}

char32_t utf8_code_point(std::string_view character) {
  constexpr unsigned kLeadMask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t code = static_cast<unsigned char>(character[0]) & kLeadMask[character.size()];
  for (char c : character.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 0x3F);
  return code;
}

bool is_utf8(std::string_view text) {
  while (true) {
    text.remove_prefix(ascii_prefix(text));
    if (text.empty()) return true;
    const Utf8Step step = next_utf8(text);
    if (step.kind != Utf8Step::valid) return false;
    text.remove_prefix(step.bytes);
  }
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Utf8Repair repair(InvalidUtf8::per_sequence);
  repair.feed(text, out);
  repair.finish(out);
  return out;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

void Utf8Repair::feed(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    joined += bytes;
    bytes = joined;
    held_.clear();
  }
  while (!bytes.empty()) {
    std::size_t good = ascii_prefix(bytes);
    Utf8Step step{Utf8Step::valid, 0};
    while (good < bytes.size() && step.kind == Utf8Step::valid) {
      step = next_utf8(bytes.substr(good));
      if (step.kind == Utf8Step::valid) good += step.bytes;
    }
    out += bytes.substr(0, good);
    bytes.remove_prefix(good);
    if (bytes.empty()) return;
    if (step.kind == Utf8Step::incomplete) {
      held_ = bytes;
      return;
    }
    replace(step.bytes, out);
    bytes.remove_prefix(step.bytes);
  }
}

void Utf8Repair::finish(std::string& out) {
  if (!held_.empty()) replace(held_.size(), out);
  held_.clear();
}

// A prefix of a character has no byte that begins another, so per_byte is a matter of counting.
void Utf8Repair::replace(std::size_t bytes, std::string& out) const {
  const std::size_t count = rule_ == InvalidUtf8::per_byte ? bytes : 1;
  for (std::size_t i = 0; i < count; ++i) out += kReplacement;
}

}  // namespace ostro::txt
