#include "server/beam_fields.h"

#include <algorithm>

#include "base/error.h"

namespace ostro::server {
namespace {

constexpr std::int64_t kMostBeams = 128;

// What has one meaning only where nothing is searched.
void read_none(Fields& fields, const ApiRequest& r) {
  fields.only("best_of", r.base.num_return_sequences);
  const std::pair<const char*, nlohmann::json> off[] = {
      {"beam_width", 1}, {"length_penalty", 1}, {"early_stopping", false}};
  for (const auto& [name, value] : off) {
    const nlohmann::json* found = fields.any(name);
    if (found && *found != value)
      refuse(name, text('"', name, "\" goes with \"use_beam_search\": true"));
  }
}

std::int32_t read_width(Fields& fields, std::int32_t n) {
  const auto width = fields.integer("beam_width", 1, kMostBeams);
  const auto best_of = fields.integer("best_of", 1, kMostBeams);
  if (width && best_of && *width != *best_of)
    refuse("best_of", text("\"beam_width\" is ", *width, " and \"best_of\" ", *best_of,
                           "; both are the number of beams"));
  const auto beams = std::int32_t(width ? *width : best_of.value_or(n));
  if (n > beams) refuse("n", text("\"n\" is ", n, "; there are ", beams, " beams"));
  return beams;
}

EarlyStopping read_early_stopping(Fields& fields) {
  const nlohmann::json* value = fields.any("early_stopping");
  if (!value) return EarlyStopping::no;
  if (*value == "never") return EarlyStopping::never;
  if (!value->is_boolean()) refuse_value("early_stopping", "true, false or \"never\"", *value);
  return value->get<bool>() ? EarlyStopping::yes : EarlyStopping::no;
}

void refuse_sampling(Fields& fields, const SamplingConfig& s) {
  const auto check = [&](const char* name, bool fits, const char* wanted) {
    if (const nlohmann::json* value = fields.any(name); value && !fits)
      refuse_value(name, text(wanted, " with beams, which are not sampled"), *value);
  };
  check("temperature", s.temperature == 0, "0");
  check("top_p", s.top_p == 1, "1");
  check("top_k", s.top_k <= 1, "0 or 1");
  check("min_p", s.min_p == 0, "0");
}

}  // namespace

void read_beams(Fields& fields, ApiRequest& r) {
  if (!fields.boolean("use_beam_search").value_or(false)) return read_none(fields, r);
  SamplingConfig& s = r.base.sampling;
  s.num_beams = read_width(fields, r.base.num_return_sequences);
  s.length_penalty = float(fields.number("length_penalty", -100, 100).value_or(1));
  s.early_stopping = read_early_stopping(fields);
  if (s.num_beams == 1) {
    constexpr const char* kWanted =
        "left out with one beam; beam_width, best_of or n says how many";
    if (s.length_penalty != 1)
      refuse_value("length_penalty", kWanted, *fields.any("length_penalty"));
    if (s.early_stopping != EarlyStopping::no)
      refuse_value("early_stopping", kWanted, *fields.any("early_stopping"));
  }
  refuse_sampling(fields, s);
  s.temperature = 0;
  if (r.stream)
    refuse("stream", "beams are known when the search has ended: they are not streamed");
  if (!r.stops.empty())
    refuse("stop",
           "stop strings are looked for as text comes; beams come when the search has ended");
  if (r.base.guide)
    refuse("use_beam_search", "one sequence at a time is guided: beams cannot be held to a format");
}

}  // namespace ostro::server
