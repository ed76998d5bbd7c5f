#include "server/call_text.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace ostro::server {
namespace {

// None if the text is not JSON; parse_json() limits how deep that is.
std::optional<nlohmann::json> json_of(std::string_view text) {
  try {
    return parse_json(text, "a tool call");
  } catch (const InvalidArgument&) {
    return {};
  }
}

std::optional<std::string> string_of(std::string_view text) {
  const auto value = json_of(text);
  if (!value || !value->is_string()) return {};
  return value->get<std::string>();
}

}  // namespace

CallText::State CallText::push(char c) {
  text_ += c;
  if (in_string_) {
    if (escaped_)
      escaped_ = false;
    else if (c == '\\')
      escaped_ = true;
    else if (c == '"')
      in_string_ = false;
    return State::open;
  }
  if (!bare_ && depth_ == 1 && !push_member(c)) return State::wrong;
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') --depth_;
  if (begin_ && !end_ && depth_ == (bare_ ? 0 : 1)) end_ = text_.size();
  if (depth_ > 0) return State::open;
  return name_ && end_ ? State::closed : State::wrong;
}

// `c` is of the object itself: not in a string, nor in a list or an object within it.
bool CallText::push_member(char c) {
  if (c == ':') {
    key_ = string_of(from(member_));
    member_ = text_.size();
    return key_ && !(key_ == "name" && name_) && !(key_ == "arguments" && begin_);
  }
  if (c == ',' || c == '}') {
    if (key_ == "name" && !(name_ = string_of(from(member_)))) return false;
    key_.reset();
    member_ = text_.size();
    return true;
  }
  if (key_ != "arguments" || begin_ || is_json_space(c)) return true;
  if (c != '{') return false;
  begin_ = text_.size() - 1;
  return true;
}

// Up to the last byte.
std::string_view CallText::from(std::size_t begin) const {
  return std::string_view(text_).substr(begin, text_.size() - 1 - begin);
}

std::string_view CallText::arguments() const {
  if (!begin_) return {};
  return std::string_view(text_).substr(*begin_, end_.value_or(text_.size()) - *begin_);
}

bool CallText::is_json() const { return json_of(text_).has_value(); }

}  // namespace ostro::server
