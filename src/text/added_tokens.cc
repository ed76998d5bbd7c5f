#include "text/added_tokens.h"

#include <algorithm>

#include "text/utf8.h"

namespace ostro::txt {
namespace {

// Where the last character of a text that is not empty begins.
std::size_t last_char(std::string_view text) {
  std::size_t i = text.size() - 1;
  while (i > 0 && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) --i;
  return i;
}

std::size_t space_before(std::string_view text, std::size_t end) {
  while (end > 0) {
    const std::size_t begin = last_char(text.substr(0, end));
    if (!is_white_space(utf8_code_point(text.substr(begin, end - begin)))) break;
    end = begin;
  }
  return end;
}

std::size_t space_after(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const std::size_t bytes = next_utf8(text.substr(begin)).bytes;
    if (!is_white_space(utf8_code_point(text.substr(begin, bytes)))) break;
    begin += bytes;
  }
  return begin;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens,
                         const std::function<std::string(std::string_view)>& pattern)
    : tokens_(std::move(tokens)), nodes_(1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    add(static_cast<std::int32_t>(i), pattern ? pattern(token.content) : token.content);
    if (token.single_word && !word_char_) {
      word_char_.emplace(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])");
    }
  }
}

void AddedTokens::add(std::int32_t token, std::string_view pattern) {
  if (pattern.empty()) return;
  begins_[static_cast<unsigned char>(pattern[0])] = true;
  std::int32_t node = 0;
  for (char c : pattern) {
    const auto& next = nodes_[node].next;
    const auto found = std::ranges::find(next, c, &std::pair<char, std::int32_t>::first);
    if (found != next.end()) {
      node = found->second;
      continue;
    }
    const auto added = static_cast<std::int32_t>(nodes_.size());
    nodes_[node].next.emplace_back(c, added);
    nodes_.emplace_back();
    node = added;
  }
  if (nodes_[node].token < 0) nodes_[node].token = token;
}

std::optional<AddedTokens::Match> AddedTokens::match_at(std::string_view text) const {
  std::optional<Match> longest;
  std::int32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto& next = nodes_[node].next;
    const auto found = std::ranges::find(next, text[i], &std::pair<char, std::int32_t>::first);
    if (found == next.end()) break;
    node = found->second;
    if (nodes_[node].token >= 0) longest = Match{nodes_[node].token, i + 1};
  }
  return longest;
}

bool AddedTokens::is_single_word(std::string_view text, std::size_t begin, std::size_t end) const {
  if (begin > 0) {
    const std::size_t before = last_char(text.substr(0, begin));
    if (word_char_->matches(text.substr(before, begin - before))) return false;
  }
  return end == text.size() ||
         !word_char_->matches(text.substr(end, next_utf8(text.substr(end)).bytes));
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text, bool parse_special) const {
  std::vector<Part> parts;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!begins_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto match = match_at(text.substr(at));
    if (!match) {
      ++at;
      continue;
    }
    // A match that does not count still hides the shorter ones inside it.
    const AddedToken& token = tokens_[match->token];
    std::size_t begin = at;
    std::size_t end = at + match->bytes;
    at = end;
    if (token.special && !parse_special) continue;
    if (token.single_word && !is_single_word(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(space_before(text, begin), done);
    if (token.rstrip) end = space_after(text, end);
    if (done < begin) parts.push_back({-1, done, begin});
    parts.push_back({token.id, begin, end});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, done, text.size()});
  return parts;
}

}  // namespace ostro::txt
