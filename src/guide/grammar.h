// A compiled guide. Only the .cc files of this folder include it: xgrammar stays in here.
#pragma once

#include <xgrammar/xgrammar.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace ostro::guide {

inline std::size_t words_for(std::int64_t vocab) { return std::size_t(vocab + 31) / 32; }

// What all guides of a vocabulary share.
struct TokenSets {
  std::int64_t vocab = 0;
  std::vector<std::uint32_t> text;  // bit t: token t has bytes
  std::unordered_map<std::int32_t, std::string> at_start;
};

class Grammar {
 public:
  Grammar(std::shared_ptr<const TokenSets> sets, xgrammar::CompiledGrammar grammar)
      : tokens(std::move(sets)), compiled(std::move(grammar)) {}

  std::shared_ptr<const TokenSets> tokens;
  xgrammar::CompiledGrammar compiled;
  bool at_start = false;
  std::vector<std::uint32_t> first;  // what the first token may be
};

// Sets the bits of the tokens that `matcher` allows next.
void fill(xgrammar::GrammarMatcher& matcher, const TokenSets&, std::span<std::uint32_t> allowed);

}  // namespace ostro::guide
