#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/error.h"
#include "text/utf8.h"

namespace ostro::txt {
namespace {

constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

std::string pcre2_error(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// Rewrites one pattern from left to right.
class Translation {
 public:
  explicit Translation(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  void step() {
    const char c = in_[at_];
    if (c == '\\' && at_ + 1 < in_.size()) return escape();
    if (in_class_) {
      if (c == '[' && !in_.substr(at_).starts_with("[:")) refuse("a class inside a class", 1);
      if (in_.substr(at_).starts_with("&&")) refuse("an intersection of classes", 2);
      if (c == ']' && at_ > class_begin_) in_class_ = false;
      if (in_.substr(at_).starts_with("[:")) {
        const std::size_t end = in_.find(":]", at_);
        return copy(end == std::string_view::npos ? in_.size() - at_ : end + 2 - at_);
      }
    } else if (c == '[') {
      in_class_ = true;
      class_begin_ = at_ + (in_.substr(at_).starts_with("[^") ? 2 : 1);
      return copy(class_begin_ - at_);
    } else if (in_.substr(at_).starts_with("(?m")) {
      refuse("the option m", 3);
    }
    copy(1);
  }

  void escape() {
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        return replace(R"(\p{White_Space})");
      case 'S':
        return replace(R"(\P{White_Space})");
      case 'v':
        return replace(R"(\x0B)");
      case 'w':
        return replace(in_class_ ? std::string(kWord) : "[" + std::string(kWord) + "]");
      case 'W':
        if (in_class_) refuse("\\W in a class", 2);
        return replace("[^" + std::string(kWord) + "]");
      case 'u':
        return code_point();
      case 'p':
      case 'P':
        return property();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
      case 'x':
        return copy(2);
      default:
        break;
    }
    const bool letter_or_digit =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter_or_digit) refuse("the escape", 2);
    copy(2);
  }

  // \u00E9 is \x{00E9}.
  void code_point() {
    const std::string_view digits = in_.substr(at_ + 2, 4);
    const auto is_hex = [](unsigned char c) { return std::isxdigit(c) != 0; };
    if (digits.size() != 4 || !std::ranges::all_of(digits, is_hex)) refuse("the escape", 2);
    at_ += digits.size();
    replace("\\x{" + std::string(digits) + "}");
  }

  // PCRE2 takes \p{Han} for all characters that are used with that script.
  void property() {
    const std::size_t close = in_.find('}', at_);
    if (close == std::string_view::npos || at_ + 2 >= in_.size() || in_[at_ + 2] != '{') {
      return copy(2);
    }
    const std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    constexpr std::array<std::string_view, 5> kNotScripts = {"Any", "Alphabetic", "White_Space",
                                                             "Emoji", "Join_Control"};
    const bool script = name.size() > 2 && name[0] != '^' &&
                        std::ranges::find(kNotScripts, name) == kNotScripts.end();
    if (!script) return copy(close + 1 - at_);
    out_ += in_.substr(at_, 3);
    out_ += "sc:";
    at_ += 3;
    copy(close + 1 - at_);
  }

  void copy(std::size_t chars) {
    out_ += in_.substr(at_, chars);
    at_ += chars;
  }
  void replace(std::string_view by) {
    out_ += by;
    at_ += 2;
  }
  [[noreturn]] void refuse(std::string_view what, std::size_t chars) const {
    OSTRO_THROW(Unsupported, "the pattern ", in_, " has ", what, " (", in_.substr(at_, chars),
                ") at offset ", at_, ", which this build cannot match");
  }

  std::string_view in_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::size_t class_begin_ = 0;  // a ] here is a letter
  std::string out_;
};

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma) { return Translation(oniguruma).run(); }

Regex::Regex(std::string_view oniguruma) : Regex(pcre2_pattern(oniguruma), PCRE2_MULTILINE) {}

Regex Regex::literal(std::string_view text) { return Regex(text, PCRE2_LITERAL); }

Regex::Regex(std::string_view pattern, std::uint32_t options) : pattern_(pattern) {
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  if (options != PCRE2_LITERAL) options |= PCRE2_UCP;
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options | PCRE2_UTF, &error, &offset, context.get());
  OSTRO_REQUIRE(code, "the pattern ", pattern, " does not compile: ", pcre2_error(error),
                " at offset ", offset);
  code_ =
      std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  // Where there is no just-in-time compiler, the interpreter does the same more slowly.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

bool Regex::matches(std::string_view text) const {
  bool found = false;
  for_each_match(text, [&](std::size_t, std::size_t) { found = true; });
  return found;
}

void Regex::for_each_match(std::string_view text,
                           const std::function<void(std::size_t, std::size_t)>& match) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data() ? text.data() : "");
  std::size_t from = 0;
  std::size_t last_end = text.size() + 1;
  while (from <= text.size()) {
    int rc = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                       data.get(), nullptr);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return;
    OSTRO_REQUIRE(rc > 0, "the pattern ", pattern_, " fails at byte ", from, " of a text of ",
                  text.size(), ": ", pcre2_error(rc));
    const std::size_t* bounds = pcre2_get_ovector_pointer(data.get());
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (begin == end && end == last_end) {
      if (end == text.size()) return;
      from = end + next_utf8(text.substr(end)).bytes;
      continue;
    }
    match(begin, end);
    from = last_end = end;
  }
}

}  // namespace ostro::txt
