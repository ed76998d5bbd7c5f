#include "cli/vocabulary.h"

#include <algorithm>
#include <string>
#include <utility>

namespace ostro::cli {
namespace {

// What detokenizing makes of a token's bytes where a text begins. Not by the detokenizer itself: it
// holds back parts of characters.
std::string at_start(std::string bytes, txt::LeadingSpace rule) {
  if (rule == txt::LeadingSpace::drop_one && bytes.starts_with(' ')) bytes.erase(0, 1);
  if (rule == txt::LeadingSpace::drop_all_of_first_token) std::erase(bytes, ' ');
  return bytes;
}

}  // namespace

Vocabulary vocabulary_of(const txt::Tokenizer& tokenizer, std::int64_t vocab) {
  Vocabulary v;
  v.bytes.resize(std::size_t(std::min<std::int64_t>(vocab, tokenizer.vocab_size())));
  for (std::size_t i = 0; i < v.bytes.size(); ++i) {
    const TokenId id = TokenId(i);
    if (tokenizer.is_special(id)) continue;
    v.bytes[i] = tokenizer.piece(id);
    std::string first = at_start(v.bytes[i], tokenizer.decode_rule().leading_space);
    if (first != v.bytes[i]) v.at_start.emplace_back(id, std::move(first));
  }
  return v;
}

}  // namespace ostro::cli
