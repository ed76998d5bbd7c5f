// How weights and KV cache are stored, for the commands that build, run or plan a model.
#pragma once

#include "cli/flags.h"
#include "model/config.h"

namespace ostro::cli {

struct QuantisationFlags {
  bool fp8 = false, fp8_kv = false, weight_only = false;
  std::string weight_only_precision;  // int8 or int4; int8 if empty

  // `of`: how its help begins, "" or "with --dummy_weights: ".
  void add(CLI::App& app, const char* group, const std::string& of);
  bool given() const;
  // Throws InvalidArgument for flags that do not go together.
  model::Quantization quantization() const;
};

}  // namespace ostro::cli
