// The text of one call of a tool, read a byte at a time.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace ostro::server {

inline bool is_json_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// {"name": "f", "arguments": {...}}, the keys in any order, others beside them; or the arguments
// alone. Brackets and strings are followed, which finds in JSON where the arguments begin and end;
// whether it is JSON is known at its end, by is_json().
class CallText {
 public:
  enum class State {
    open,
    closed,  // with a name and arguments
    wrong    // no call, whatever comes next
  };

  CallText() = default;
  // The arguments alone, of a call whose name was told before them.
  explicit CallText(std::string name) : name_(std::move(name)), bare_(true), begin_(0) {}

  State push(char);  // the first is the opening brace; none after the text has ended

  const std::optional<std::string>& name() const { return name_; }
  std::string_view arguments() const;  // as far as they have come; empty before their brace
  bool is_json() const;

 private:
  bool push_member(char);
  std::string_view from(std::size_t begin) const;

  std::string text_;
  std::optional<std::string> name_, key_;  // key_: of the value at hand
  bool bare_ = false;
  std::size_t member_ = 1;                  // where the key, then the value at hand begins
  std::optional<std::size_t> begin_, end_;  // of the arguments
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false;
};

}  // namespace ostro::server
