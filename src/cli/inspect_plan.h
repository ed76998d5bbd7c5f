// ostro inspect --plan: what an engine, or a shape without one, takes and how fast it can be.
#pragma once

#include "cli/runtime.h"

namespace ostro::cli {

struct PlanFlags {
  std::string plan;  // "" (one layout) or "auto"
  ShapeFlags shape;
  std::string dtype = "auto";
  QuantisationFlags quantisation;
  std::string gpu = "h100";
  double memory_gb = 0, kv_fraction = 0.9;
  std::int64_t gpus = 0;
  int tp_size = 0, pp_size = 0;
  std::int64_t moe_ep_size = 0;
  std::int64_t max_batch_size = 0, max_num_tokens = 0;
  std::int64_t input_len = 0, output_len = 0;  // 0: 1000, or half of a shorter context

  void add(CLI::App& app);
  static bool asked(const CLI::App& app) { return app.count("--plan") > 0; }
  static bool owns(const CLI::Option&);  // whether add() has added it
};

// Of the engine in `engine_dir`, or with --preset or another flag of shape of that, without an
// engine. Prints, and throws InvalidArgument for flags that do not go together.
void print_plan(const PlanFlags&, const std::string& engine_dir);

}  // namespace ostro::cli
