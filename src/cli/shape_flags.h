// The shape of a model without a checkpoint: a preset and what differs from it.
#pragma once

#include <optional>

#include "cli/flags.h"
#include "model/config.h"

namespace ostro::cli {

struct ShapeFlags {
  std::optional<std::string> preset, hidden_act;  // empty: the default's, as all of these
  std::optional<std::int64_t> vocab, layers, positions, hidden, heads, kv_heads, inter, experts,
      top_k;
  std::optional<double> norm_eps;

  void add(CLI::App& app, const char* group);
  bool given() const;
  // LLaMA-7B in float16, as the seed's tool, or the preset in bfloat16.
  model::ModelConfig model() const;
  // Sets what is given. Throws Unsupported for an activation that is not built.
  void apply(model::ModelConfig&) const;
};

}  // namespace ostro::cli
