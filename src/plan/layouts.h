// Which layout serves a model best on a number of GPUs.
#pragma once

#include <optional>
#include <vector>

#include "plan/serving.h"

namespace ostro::plan {

struct Layout {
  std::int64_t engines = 1;  // equal ones, side by side, each with its own weights
  model::Mapping mapping;    // of each
  Estimate estimate;         // of each

  double output_per_s() const { return double(engines) * estimate.output_per_s; }
};

// Every grid of `ranks` ranks, tensor parallel inside a node of `node` alone, that the model's
// sizes allow; moe_ep: each that divides tp.
std::vector<model::Mapping> mappings(const model::ModelConfig&, std::int64_t ranks,
                                     std::int64_t node);

// Flags, each of which alone makes the model fit: the grids of the fewest ranks, formats of fewer
// bits, smaller steps. Up to 64 ranks.
std::vector<std::string> what_would_fit(const Question&, const model::Mapping&);

// Every way to use all `gpus`: equal engines side by side, each on one of the mappings().
std::vector<Layout> layouts(const Question&, std::int64_t gpus);

enum class Goal { throughput, latency };

// The best that fits: the most output tokens a second, or the shortest time of a token alone.
// Within 3 %, which is less than the model's error, the one with the shorter time or the higher
// rate. Empty if none fits.
std::optional<Layout> best(const std::vector<Layout>&, Goal);

}  // namespace ostro::plan
