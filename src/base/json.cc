#include "base/json.h"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro {

using nlohmann::json;

json parse_json(std::string_view text, std::string_view source, std::size_t most_keys) {
  constexpr int kDeepest = 64;
  bool too_deep = false, too_many = false;
  std::array<std::size_t, kDeepest + 2> keys{};  // of the objects that are open, by depth
  const auto watch = [&](int depth, json::parse_event_t event, json&) {
    if (depth > kDeepest) too_deep = true;
    if (too_deep) return false;
    if (event == json::parse_event_t::object_start) keys[std::size_t(depth) + 1] = 0;
    if (event == json::parse_event_t::key && ++keys[std::size_t(depth)] > most_keys)
      too_many = true;
    return !too_many;
  };
  try {
    json value = json::parse(text, watch);
    OSTRO_REQUIRE(!too_deep, source, " nests JSON deeper than ", kDeepest);
    OSTRO_REQUIRE(!too_many, source, " has an object of more than ", most_keys, " keys");
    return value;
  } catch (const json::parse_error& e) {
    OSTRO_THROW(InvalidArgument, source, " is not JSON: it goes wrong at byte ", e.byte, " of ",
                text.size());
  } catch (const json::exception& e) {
    OSTRO_THROW(InvalidArgument, source, " is not usable JSON: ", e.what());
  }
}

std::string shown(const json& value) {
  constexpr std::size_t kLongest = 60;
  std::string s = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (s.size() > kLongest) s = s.substr(0, kLongest - 3) + "...";
  return s;
}

JsonObject::JsonObject(const json& value, std::string_view source)
    : value_(value), source_(source) {
  OSTRO_REQUIRE(value.is_object(), source, " must be a JSON object, it is ", shown(value));
}

bool JsonObject::has(const char* key) const {
  const auto it = value_.find(key);
  return it != value_.end() && !it->is_null();
}

const json& JsonObject::at(const char* key) const {
  const auto it = value_.find(key);
  OSTRO_REQUIRE(it != value_.end() && !it->is_null(), source_, " has no \"", key, '"');
  return *it;
}

std::int64_t JsonObject::integer(const char* key, std::int64_t low, std::int64_t high) const {
  const json& v = at(key);
  // A whole number written as 1e3 or 8.0 counts.
  const bool whole = v.is_number_integer() ||
                     (v.is_number_float() && std::trunc(v.get<double>()) == v.get<double>() &&
                      std::abs(v.get<double>()) < 0x1p53);
  const bool too_big = v.is_number_unsigned() && v.get<std::uint64_t>() > std::uint64_t(INT64_MAX);
  OSTRO_REQUIRE(whole && !too_big, source_, ": \"", key, "\" is ", shown(v),
                "; it must be an integer");
  const auto n = v.get<std::int64_t>();
  OSTRO_REQUIRE(low <= n && n <= high, source_, ": \"", key, "\" is ", n, "; it must be in [", low,
                ", ", high, ']');
  return n;
}

std::int64_t JsonObject::integer_or(const char* key, std::int64_t fallback, std::int64_t low,
                                    std::int64_t high) const {
  return has(key) ? integer(key, low, high) : fallback;
}

double JsonObject::number(const char* key) const {
  const json& v = at(key);
  OSTRO_REQUIRE(v.is_number() && std::isfinite(v.get<double>()), source_, ": \"", key, "\" is ",
                shown(v), "; it must be a finite number");
  return v.get<double>();
}

double JsonObject::number_or(const char* key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonObject::boolean_or(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  const json& v = at(key);
  OSTRO_REQUIRE(v.is_boolean(), source_, ": \"", key, "\" is ", shown(v),
                "; it must be true or false");
  return v.get<bool>();
}

std::string JsonObject::string(const char* key) const {
  const json& v = at(key);
  OSTRO_REQUIRE(v.is_string(), source_, ": \"", key, "\" is ", shown(v), "; it must be a string");
  return v.get<std::string>();
}

std::vector<std::int32_t> JsonObject::token_ids(const char* key) const {
  const json& list = at(key);
  OSTRO_REQUIRE(list.is_array(), source_, ": \"", key, "\" is ", shown(list),
                "; it must be a list");
  std::vector<std::int32_t> ids;
  for (const json& id : list) {
    OSTRO_REQUIRE(id.is_number_integer() && 0 <= id && id <= INT32_MAX, source_, ": \"", key,
                  "\" holds ", shown(id), ", which is no token id");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::string JsonObject::string_or(const char* key, std::string_view fallback) const {
  return has(key) ? string(key) : std::string(fallback);
}

}  // namespace ostro
