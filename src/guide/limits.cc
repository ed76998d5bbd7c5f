#include "guide/limits.h"

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

namespace ostro::guide {
namespace {

// Numbers beyond it are all the same: too large.
constexpr std::int64_t kHuge = std::int64_t{1} << 31;

std::int64_t product(std::int64_t a, std::int64_t b) { return std::min(kHuge, a * b); }

// Reads a regular expression, or a grammar, only as far as its brackets and repetitions.
class Symbols {
 public:
  Symbols(std::string_view text, bool is_grammar) : text_(text), is_grammar_(is_grammar) {}

  std::int64_t count() {
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '(') {
        open();
      } else if (c == ')') {
        close();
      } else if (c == '[') {
        skip_to(']');
        item(1);
      } else if (is_grammar_ && c == '"') {
        const std::size_t begin = at_;
        skip_to('"');
        item(std::int64_t(at_ - begin));
      } else if (is_grammar_ && c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (c == '{') {
        repeat();
      } else if (std::string_view("*+?|").find(c) == std::string_view::npos) {
        if (c == '\\' && at_ < text_.size()) ++at_;
        item(1);
      }
    }
    while (!outer_.empty()) close();
    return sum_;
  }

 private:
  void item(std::int64_t symbols) {
    last_ = symbols;
    sum_ = std::min(kHuge, sum_ + symbols);
  }
  void open() {
    OSTRO_REQUIRE(outer_.size() < kDeepest, "there are more than ", kDeepest,
                  " parentheses in each other");
    outer_.push_back(sum_);
    sum_ = 0;
  }
  void close() {
    if (outer_.empty()) return;  // the parser has words for it
    const std::int64_t inner = sum_;
    sum_ = outer_.back();
    outer_.pop_back();
    item(inner);
  }
  void skip_to(char end) {
    for (; at_ < text_.size() && text_[at_] != end; ++at_)
      if (text_[at_] == '\\') ++at_;
    at_ = std::min(at_ + 1, text_.size());
  }
  // After the '{' of {n}, {n,} or {n,m}.
  void repeat() {
    const std::size_t end = text_.find('}', at_);
    const std::string_view bounds = text_.substr(at_, end - at_);
    if (end == std::string_view::npos ||
        bounds.find_first_not_of("0123456789, ") != std::string_view::npos)
      return item(1);
    std::int64_t copies = 0, number = 0;
    for (const char c : bounds) {
      number = c == ',' ? 0 : c == ' ' ? number : std::min(kHuge, number * 10 + (c - '0'));
      copies = std::max(copies, number);
    }
    at_ = end + 1;
    sum_ -= std::min(sum_, last_);
    item(product(last_, copies));
  }

  std::string_view text_;
  bool is_grammar_;
  std::size_t at_ = 0;
  std::int64_t sum_ = 0, last_ = 0;
  std::vector<std::int64_t> outer_;
};

std::int64_t symbols_of(const nlohmann::json& schema) {
  std::int64_t sum = 0;
  if (schema.is_array()) {
    for (const nlohmann::json& part : schema) sum = std::min(kHuge, sum + symbols_of(part));
  } else if (schema.is_object()) {
    for (const auto& [key, value] : schema.items()) {
      sum += symbols_of(value);
      if (key == "pattern" && value.is_string())
        sum += Symbols(value.get_ref<const std::string&>(), false).count();
      if (key == "patternProperties" && value.is_object())
        for (const auto& [pattern, of] : value.items()) sum += Symbols(pattern, false).count();
      for (const char* bound : {"maxLength", "minLength", "maxItems", "minItems", "maxProperties",
                                "minProperties", "minContains", "maxContains"})
        if (key == bound && value.is_number())
          sum += std::int64_t(std::clamp(value.get<double>(), 0.0, double(kHuge)));
      sum = std::min(kHuge, sum);
    }
  }
  return sum;
}

// xgrammar leaves these out without a word.
void refuse_keywords(const nlohmann::json& schema) {
  if (schema.is_array())
    for (const nlohmann::json& part : schema) refuse_keywords(part);
  if (!schema.is_object()) return;
  const auto is = [](const std::string& key, std::initializer_list<const char*> of) {
    return std::ranges::find(of, key) != of.end();
  };
  for (const auto& [key, value] : schema.items()) {
    OSTRO_REQUIRE(!is(key, {"not", "if", "then", "else", "dependentRequired", "dependentSchemas",
                            "uniqueItems", "contains", "minContains", "maxContains"}),
                  "the JSON schema has the keyword \"", key, "\", which is not supported");
    if (is(key, {"enum", "const", "default", "examples"})) continue;  // values, not schemas
    if (is(key, {"properties", "patternProperties", "$defs", "definitions"}) && value.is_object()) {
      for (const auto& [name, part] : value.items()) refuse_keywords(part);
    } else {
      refuse_keywords(value);
    }
  }
}

}  // namespace

double thread_seconds() {
  std::timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

void check_limits(const Guide& guide) {
  OSTRO_REQUIRE(guide.text.size() <= kLongestTextBytes, "a guide of ", guide.text.size(),
                " bytes is too long; the limit is ", kLongestTextBytes);
  std::int64_t symbols = 0;
  if (guide.kind == Kind::json_schema) {
    const nlohmann::json schema = parse_json(guide.text, "the JSON schema");
    refuse_keywords(schema);
    symbols = symbols_of(schema);
  }
  if (guide.kind == Kind::regex || guide.kind == Kind::grammar)
    symbols = Symbols(guide.text, guide.kind == Kind::grammar).count();
  OSTRO_REQUIRE(symbols <= kMostSymbols, "the guide's repetitions and lengths make ",
                symbols < kHuge ? std::to_string(symbols) : "billions of",
                " symbols when written out; the limit is ", kMostSymbols);
}

}  // namespace ostro::guide
