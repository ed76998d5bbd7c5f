// Measures the tactics of a model's products on the device that will run it.
//
//   const std::vector<TunedProduct> measured = builder::tune(config, *gpu);
//   model::write_tactics("engines/mixtral", *gpu, tactics_of(measured));
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/engine_config.h"
#include "ops/backend.h"

namespace ostro::builder {

// How one tactic is compared with others. The first of them is the backend's own.
struct Trials {
  std::function<bool(ops::Tactic)> same;       // it gives the bits of the first
  std::function<double(ops::Tactic)> seconds;  // one measurement
};

struct Choice {
  ops::Tactic tactic = 0;
  double gain = 0;                 // of the time that the first takes; 0 for the first itself
  std::vector<ops::Tactic> wrong;  // that gave other bits
};

// The first, or the one of the same bits with the least median of several measurements, taken in
// turns, if that is less by more than 2 % and than the spread of either's measurements.
Choice choose(std::span<const ops::Tactic> tactics, const Trials&);

// A product of some rank of an engine, for one number of tokens.
struct TunedProduct {
  std::string name;  // "qkv", "o", "experts", "gate, up", "down" or "lm_head"
  ops::Product product;
  std::int64_t tokens = 0;
  ops::Tactic planned = 0;
  Choice choice;
};

// Chooses for each product of the engine's ranks, one at a time, as a step runs it: after the same
// norm, with weights that do not stay in the device's L2, experts routed at random. Dummy weights;
// the engine's memory is not touched. The numbers of tokens are those of padded decode steps, then
// doubles up to limits.max_num_tokens. Leaves the backend with no table in use.
using TuneProgress = std::function<void(double done, const TunedProduct& last)>;
std::vector<TunedProduct> tune(const model::EngineConfig&, ops::Backend&,
                               const TuneProgress& progress = {});

ops::Tactics tactics_of(std::span<const TunedProduct>);

}  // namespace ostro::builder
