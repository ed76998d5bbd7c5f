// JSON objects read with errors that name the file, the key, the value found and the value wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ostro {

// For text that anyone may send: where objects keep their order, each key is looked for among all
// before it.
inline constexpr std::size_t kMostUntrustedKeys = 8192;

// Throws InvalidArgument naming `source` and the byte where the text stops being JSON, or if it
// nests deeper than 64, or an object has more than `most_keys` keys.
nlohmann::json parse_json(std::string_view text, std::string_view source,
                          std::size_t most_keys = SIZE_MAX);

// One object of a document. Keeps references: the object and the source name must outlive it.
//
//   const JsonObject config(parsed, "config.json");
//   const auto hidden = config.integer("hidden_size", 1, 1 << 20);
class JsonObject {
 public:
  // Throws InvalidArgument unless `value` is an object.
  JsonObject(const nlohmann::json& value, std::string_view source);

  bool has(const char* key) const;  // present and not null

  // Without a fallback the key must be there. An integer outside [low, high] is refused.
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const;
  std::int64_t integer_or(const char* key, std::int64_t fallback, std::int64_t low,
                          std::int64_t high) const;
  double number(const char* key) const;  // finite
  double number_or(const char* key, double fallback) const;
  bool boolean_or(const char* key, bool fallback) const;
  std::string string(const char* key) const;
  std::string string_or(const char* key, std::string_view fallback) const;
  std::vector<std::int32_t> token_ids(const char* key) const;  // a list of integers >= 0
  const nlohmann::json& at(const char* key) const;             // any type; must be there

  const nlohmann::json& value() const { return value_; }
  std::string_view source() const { return source_; }

 private:
  const nlohmann::json& value_;
  std::string_view source_;
};

// The value as it would stand in a message: at most 60 characters of its JSON text.
std::string shown(const nlohmann::json& value);

}  // namespace ostro
