#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>

#include "text/utf8.h"

namespace ostro::txt {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};

struct Stretch {
  std::size_t begin, end;
  bool match;
};

// Matches and what lies between them, in order.
std::vector<Stretch> stretches(const Split& split, std::string_view text) {
  std::vector<Stretch> all;
  std::size_t done = 0;
  split.pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    if (done < begin) all.push_back({done, begin, split.invert});
    all.push_back({begin, end, !split.invert});
    done = end;
  });
  if (done < text.size()) all.push_back({done, text.size(), split.invert});
  return all;
}

// Joins neighbours: `joins(previous, current)` says whether current goes on with previous.
template <class Joins>
std::vector<Stretch> joined(const std::vector<Stretch>& parts, Joins joins) {
  std::vector<Stretch> out;
  bool previous = false;
  for (const Stretch& part : parts) {
    if (!out.empty() && joins(previous, part.match)) {
      out.back().begin = std::min(out.back().begin, part.begin);
      out.back().end = std::max(out.back().end, part.end);
    } else {
      out.push_back(part);
    }
    previous = part.match;
  }
  return out;
}

std::vector<Stretch> words_of(const Split& split, std::string_view text) {
  using enum Split::Behavior;
  std::vector<Stretch> parts = stretches(split, text);
  const auto delimiter_follows = [](bool previous, bool current) { return current && !previous; };
  switch (split.behavior) {
    case isolated:
      return parts;
    case removed:
      std::erase_if(parts, [](const Stretch& s) { return s.match; });
      return parts;
    case contiguous:
      return joined(parts, [](bool previous, bool current) { return previous == current; });
    case merged_with_previous:
      return joined(parts, delimiter_follows);
    case merged_with_next:
      std::ranges::reverse(parts);
      parts = joined(parts, delimiter_follows);
      std::ranges::reverse(parts);
      return parts;
  }
  return parts;
}

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// The character of each byte: itself in Latin-1 if visible, else the next one from U+0100 on.
struct ByteChars {
  std::array<std::uint16_t, 256> of_byte{};
  std::array<std::int16_t, 0x144> byte_of{};
};

constexpr ByteChars kByteChars = [] {
  ByteChars chars;
  chars.byte_of.fill(-1);
  std::uint16_t next = 0x100;
  for (std::uint16_t b = 0; b < 256; ++b) {
    chars.of_byte[b] = stands_for_itself(b) ? b : next++;
    chars.byte_of[chars.of_byte[b]] = static_cast<std::int16_t>(b);
  }
  return chars;
}();

}  // namespace

std::string replace_all(std::string_view text, const Replace& replace) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  for (std::size_t at; (at = text.find(replace.from)) != std::string_view::npos;) {
    out += text.substr(0, at);
    out += replace.to;
    text.remove_prefix(at + replace.from.size());
  }
  out += text;
  return out;
}

std::string Normalizer::operator()(std::string_view text) const {
  std::string out(text);
  for (const auto& step : steps) {
    std::visit(Overloaded{[&](const Prepend& prepend) {
                            if (!out.empty()) out.insert(0, prepend.text);
                          },
                          [&](const Replace& replace) { out = replace_all(out, replace); }},
               step);
  }
  return out;
}

void PreTokenizer::run(std::size_t step, std::string_view text, bool at_start,
                       const Emit& emit) const {
  if (text.empty()) return;
  if (step == steps.size()) {
    emit(text);
    return;
  }
  const auto split = [&](const Split& how, std::string_view from, const auto& next) {
    for (const Stretch& word : words_of(how, from)) {
      if (word.begin < word.end) next(from.substr(word.begin, word.end - word.begin), word.begin);
    }
  };
  std::visit(
      Overloaded{[&](const Metaspace& metaspace) {
                   std::string marked = replace_all(text, {" ", metaspace.replacement});
                   const bool prefix = metaspace.prefix == Metaspace::Prefix::always ||
                                       (metaspace.prefix == Metaspace::Prefix::first && at_start);
                   if (prefix && !marked.starts_with(metaspace.replacement)) {
                     marked.insert(0, metaspace.replacement);
                   }
                   const std::string_view all = marked;
                   for (std::size_t begin = 0; begin < all.size();) {
                     // The replacement is one character: from the next byte on, only the next one
                     // matches.
                     const std::size_t end =
                         metaspace.split
                             ? std::min(all.size(), all.find(metaspace.replacement, begin + 1))
                             : all.size();
                     run(step + 1, all.substr(begin, end - begin), at_start && begin == 0, emit);
                     begin = end;
                   }
                 },
                 [&](const Split& how) {
                   split(how, text, [&](std::string_view word, std::size_t begin) {
                     run(step + 1, word, at_start && begin == 0, emit);
                   });
                 },
                 [&](const ByteLevel& byte_level) {
                   std::string prefixed;
                   if (byte_level.add_prefix_space && text[0] != ' ') {
                     prefixed = " ";
                     prefixed += text;
                     text = prefixed;
                   }
                   const auto next = [&](std::string_view word, std::size_t begin) {
                     run(step + 1, byte_level_encode(word), at_start && begin == 0, emit);
                   };
                   if (byte_level.split) {
                     split(*byte_level.split, text, next);
                   } else {
                     next(text, 0);
                   }
                 }},
      steps[step]);
}

Split gpt2_split() {
  return {Regex(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)")};
}

std::string byte_level_encode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (char b : bytes) {
    const unsigned c = kByteChars.of_byte[static_cast<unsigned char>(b)];
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else {
      out += static_cast<char>(0xC0 | c >> 6);
      out += static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  return out;
}

std::optional<std::string> byte_level_decode(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = next_utf8(text);
    if (step.kind != Utf8Step::valid) return std::nullopt;
    const char32_t code = utf8_code_point(text.substr(0, step.bytes));
    if (code >= kByteChars.byte_of.size() || kByteChars.byte_of[code] < 0) return std::nullopt;
    out += static_cast<char>(kByteChars.byte_of[code]);
    text.remove_prefix(step.bytes);
  }
  return out;
}

}  // namespace ostro::txt
