#include "text/detokenizer.h"

#include <algorithm>

namespace ostro::txt {

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer,
                                               std::span<const std::int32_t> prompt,
                                               bool skip_special)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      repair_(tokenizer.decode_rule().invalid_utf8) {
  std::string dropped;
  for (std::int32_t id : prompt) {
    dropped.clear();
    push(id, dropped);
  }
}

std::string IncrementalDetokenizer::push(std::int32_t id) {
  std::string out;
  push(id, out);
  return out;
}

void IncrementalDetokenizer::push(std::int32_t id, std::string& out) {
  if (skip_special_ && tokenizer_.is_special(id)) return;
  std::string_view bytes = tokenizer_.piece(id);
  if (bytes.empty()) return;
  if (at_start_) {
    at_start_ = false;
    const std::size_t spaces = std::min(bytes.find_first_not_of(' '), bytes.size());
    switch (tokenizer_.decode_rule().leading_space) {
      case LeadingSpace::keep:
        break;
      case LeadingSpace::drop_one:
        bytes.remove_prefix(std::min<std::size_t>(spaces, 1));
        break;
      case LeadingSpace::drop_all_of_first_token: {
        std::string first(bytes);
        std::erase(first, ' ');
        repair_.feed(first, out);
        return;
      }
    }
  }
  repair_.feed(bytes, out);
}

std::string IncrementalDetokenizer::finish() {
  std::string out;
  repair_.finish(out);
  return out;
}

}  // namespace ostro::txt
