// config.json of an engine: everything that running it needs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/layout.h"

namespace ostro::model {

// What an engine was built for; `run` may lower these.
struct EngineLimits {
  std::int64_t max_batch_size = 2048;  // requests in one step
  std::int64_t max_input_len = 0;      // tokens; 0: the model's context
  std::int64_t max_output_len = 0;     // tokens; 0: the model's context
  std::int64_t max_beam_width = 1;
  std::int64_t max_num_tokens = 8192;  // rows of one step
  std::int64_t tokens_per_block = 64;  // of the KV cache
};

// Throws InvalidArgument naming the limit and the rule.
void check(const EngineLimits&, const ModelConfig&);

struct EngineConfig {
  ModelConfig model;
  Mapping mapping;
  EngineLimits limits;
  std::string target = "neutral";  // neutral, cpu or cuda
  bool dummy = false;              // weights drawn at random, not a model
};

// The caller's part of config.json; checkpoint::EngineWriter adds the version and the files.
// `flags` are the build flags that are recorded and change nothing.
nlohmann::json to_json(const EngineConfig&, const nlohmann::json& flags);

// Throws InvalidArgument naming `source` and what is wrong.
EngineConfig parse_engine_config(std::string_view text, std::string_view source);

}  // namespace ostro::model
