// Regular expressions over UTF-8, as the split patterns of tokenizer.json need them.
//
// Those are written for Oniguruma. They run on PCRE2, after what means something else there has
// been rewritten: \s and \S are Unicode's White_Space, \w has marks, \p{Han} is a script, ^ and $
// match at lines. What cannot be rewritten (\b, \h, nested classes ...) is refused with
// Unsupported.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ostro::txt {

// The pattern in PCRE2's language. Throws Unsupported, naming the construct and its offset.
std::string pcre2_pattern(std::string_view oniguruma);

class Regex {
 public:
  // Throws InvalidArgument, with the pattern and the offset, if it does not compile.
  explicit Regex(std::string_view oniguruma);
  // Matches exactly `text`.
  static Regex literal(std::string_view text);

  bool matches(std::string_view text) const;

  // Calls match(begin, end) for each match from left to right. Matches do not overlap; one that is
  // empty is not reported where another ends. `text` must be UTF-8. Throws InvalidArgument if the
  // pattern backtracks without end. Any number of threads.
  void for_each_match(std::string_view text,
                      const std::function<void(std::size_t, std::size_t)>& match) const;

 private:
  Regex(std::string_view pattern, std::uint32_t options);

  std::string pattern_;
  std::shared_ptr<void> code_;  // a pcre2_code, which does not change
};

}  // namespace ostro::txt
