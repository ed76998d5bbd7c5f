#include "model/engine_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "base/json.h"

namespace ostro::model {

using nlohmann::json;

void check(const EngineLimits& l, const ModelConfig& c) {
  const auto positive = [](const char* flag, std::int64_t value) {
    OSTRO_REQUIRE(value > 0, flag, " is ", value, "; it must be at least 1");
  };
  positive("max_batch_size", l.max_batch_size);
  positive("max_num_tokens", l.max_num_tokens);
  positive("max_input_len", l.max_input_len);
  positive("max_output_len", l.max_output_len);
  positive("max_beam_width", l.max_beam_width);
  OSTRO_REQUIRE(l.tokens_per_block >= 8 && (l.tokens_per_block & (l.tokens_per_block - 1)) == 0,
                "tokens_per_block is ", l.tokens_per_block,
                "; it must be a power of two, 8 or more");
  OSTRO_REQUIRE(l.max_input_len <= c.context, "max_input_len is ", l.max_input_len,
                ", the context of the model ", c.context);
}

namespace {

constexpr std::string_view kFormats[] = {"none", "fp8", "int8", "int4"};  // by Quantization::Format

}  // namespace

std::string_view name(Quantization::Format f) { return kFormats[std::size_t(f)]; }

json to_json(const Quantization& q) {
  return {{"weights", name(q.weights)}, {"kv_cache", name(q.kv_cache)}};
}

Quantization quantization_from_engine(const json& section, std::string_view source) {
  const JsonObject o(section, source);
  const auto format = [&](const char* what, std::span<const std::string_view> known) {
    const std::string wanted = o.string(what);
    const auto found = std::find(known.begin(), known.end(), wanted);
    std::string names;
    for (const std::string_view n : known) (names += ' ') += n;
    OSTRO_SUPPORTED(found != known.end(), source, ": quantization of ", what, " is \"", wanted,
                    "\"; this build has:", names);
    return Quantization::Format(found - known.begin());
  };
  return {.weights = format("weights", kFormats),
          .kv_cache = format("kv_cache", std::span(kFormats).first(2))};
}

json to_json(const EngineConfig& e, const json& flags) {
  const EngineLimits& l = e.limits;
  return {{"model", to_json(e.model)},
          {"mapping", to_json(e.mapping)},
          {"limits",
           {{"max_batch_size", l.max_batch_size},
            {"max_input_len", l.max_input_len},
            {"max_output_len", l.max_output_len},
            {"max_beam_width", l.max_beam_width},
            {"max_num_tokens", l.max_num_tokens},
            {"tokens_per_block", l.tokens_per_block}}},
          {"quantization", to_json(e.model.quantization)},
          {"target", e.target},
          {"dummy", e.dummy},
          {"flags", flags}};
}

EngineConfig parse_engine_config(std::string_view text, std::string_view source) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  const json parsed = parse_json(text, source);
  const JsonObject o(parsed, source);
  EngineConfig e;
  e.model = from_engine(o.at("model"), source);
  e.model.quantization = quantization_from_engine(o.at("quantization"), source);
  e.mapping = mapping_from_engine(o.at("mapping"), source);
  check(e.mapping, e.model);
  const JsonObject limits(o.at("limits"), source);
  e.limits = {.max_batch_size = limits.integer("max_batch_size", 1, kMost),
              .max_input_len = limits.integer("max_input_len", 1, kMost),
              .max_output_len = limits.integer("max_output_len", 1, kMost),
              .max_beam_width = limits.integer("max_beam_width", 1, kMost),
              .max_num_tokens = limits.integer("max_num_tokens", 1, kMost),
              .tokens_per_block = limits.integer("tokens_per_block", 1, kMost)};
  check(e.limits, e.model);
  e.target = o.string_or("target", "neutral");
  e.dummy = o.boolean_or("dummy", false);
  return e;
}

}  // namespace ostro::model
