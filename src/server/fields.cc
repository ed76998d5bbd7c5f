#include "server/fields.h"

#include "base/error.h"
#include "base/json.h"
#include "server/api_error.h"

namespace ostro::server {

void missing(const std::string& param) {
  throw ApiError(400, text('"', param, "\" is missing"), param, "missing_field");
}

void refuse(const std::string& param, const std::string& message) {
  throw ApiError(400, message, param, "invalid_value");
}

void refuse_value(const std::string& param, std::string_view wanted, const nlohmann::json& found) {
  refuse(param, text('"', param, "\" must be ", wanted, ", it is ", shown(found)));
}

Fields::Fields(const nlohmann::json& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (object.is_object()) return;
  if (!path_.empty()) refuse_value(path_, "an object", object);
  throw ApiError(400, text("the body must be a JSON object, it is ", shown(object)));
}

std::string Fields::path(std::string_view name) const {
  return path_.empty() ? std::string(name) : text(path_, '.', name);
}

const nlohmann::json* Fields::any(const char* name) {
  known_.insert(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<bool> Fields::boolean(const char* name) {
  const nlohmann::json* value = any(name);
  if (!value) return {};
  if (!value->is_boolean()) refuse_value(path(name), "true or false", *value);
  return value->get<bool>();
}

std::optional<std::string> Fields::string(const char* name) {
  const nlohmann::json* value = any(name);
  if (!value) return {};
  if (!value->is_string()) refuse_value(path(name), "a string", *value);
  return value->get<std::string>();
}

std::optional<std::int64_t> Fields::integer(const char* name, std::int64_t low, std::int64_t high) {
  const nlohmann::json* value = any(name);
  if (!value) return {};
  // The JSON reader keeps what does not fit into an int64 as uint64 or double.
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<std::uint64_t>() <= INT64_MAX);
  if (!fits || value->get<std::int64_t>() < low || value->get<std::int64_t>() > high)
    refuse_value(path(name), text("an integer from ", low, " to ", high), *value);
  return value->get<std::int64_t>();
}

std::optional<double> Fields::number(const char* name, double low, double high) {
  const nlohmann::json* value = any(name);
  if (!value) return {};
  if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high))
    refuse_value(path(name), text("a number from ", low, " to ", high), *value);
  return value->get<double>();
}

void Fields::only(const char* name, const nlohmann::json& only) {
  const nlohmann::json* value = any(name);
  if (value && *value != only)
    throw ApiError(
        400,
        text('"', path(name), "\" is ", shown(*value), "; this server supports only ", shown(only)),
        path(name), "unsupported_value");
}

void Fields::refuse_others() const {
  for (const auto& [name, value] : object_.items())
    if (!value.is_null() && !known_.contains(name))
      throw ApiError(400, text("this server does not support the field \"", path(name), '"'),
                     path(name), "unsupported_field");
}

}  // namespace ostro::server
