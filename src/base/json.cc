#include "base/json.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"

namespace ostro {

using nlohmann::json;

namespace {

// Goes through a text and builds nothing, so that what nests too deep or has too many keys is told
// before it takes memory. (The callback of json::parse takes time quadratic in the items of a
// list.)
class Limits : public nlohmann::json_sax<json> {
 public:
  static constexpr std::size_t kDeepest = 64;

  explicit Limits(std::size_t most_keys) : most_keys_(most_keys) {}
  bool too_deep() const { return too_deep_; }
  bool too_many() const { return too_many_; }

  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t&) override {
    too_many_ = ++keys_.back() > most_keys_;
    return !too_many_;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool parse_error(std::size_t, const std::string&, const json::exception&) override {
    return false;  // json::parse will say it
  }

 private:
  bool open() {
    too_deep_ = keys_.size() == kDeepest;
    if (!too_deep_) keys_.push_back(0);
    return !too_deep_;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  std::size_t most_keys_;
  std::vector<std::size_t> keys_;  // of what is open, the outermost first
  bool too_deep_ = false, too_many_ = false;
};

}  // namespace

json parse_json(std::string_view text, std::string_view source, std::size_t most_keys) {
  Limits limits(most_keys);
  json::sax_parse(text, &limits);
  OSTRO_REQUIRE(!limits.too_deep(), source, " nests JSON deeper than ", Limits::kDeepest);
  OSTRO_REQUIRE(!limits.too_many(), source, " has an object of more than ", most_keys, " keys");
  try {
    return json::parse(text);
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
