// A JSON object of a request, read field by field, with errors that name the field.
//
//   Fields fields(body);
//   const auto temperature = fields.number("temperature", 0, 2).value_or(1);
//   fields.refuse_others();   // whatever was not asked for is an error, never ignored
//
// A field that is null counts as absent. Throws ApiError 400 for a wrong type or range.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace ostro::server {

class Fields {
 public:
  // `path` stands before the names in messages: "messages[2]". The object must outlive this.
  explicit Fields(const nlohmann::json& object, std::string path = {});

  const nlohmann::json* any(const char* name);  // null if absent
  std::optional<bool> boolean(const char* name);
  std::optional<std::string> string(const char* name);
  std::optional<std::int64_t> integer(const char* name, std::int64_t low, std::int64_t high);
  std::optional<double> number(const char* name, double low, double high);

  // For a field that stands for one thing only in this server: absent, or equal to `only`.
  void only(const char* name, const nlohmann::json& only);

  void refuse_others() const;

  // "messages[2].content"
  std::string path(std::string_view name) const;

 private:
  const nlohmann::json& object_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
};

// Throw ApiError 400: "stop" is missing; a message of its own; "stop" must be ..., it is 3.
[[noreturn]] void missing(const std::string& param);
[[noreturn]] void refuse(const std::string& param, const std::string& message);
[[noreturn]] void refuse_value(const std::string& param, std::string_view wanted,
                               const nlohmann::json& found);

}  // namespace ostro::server
