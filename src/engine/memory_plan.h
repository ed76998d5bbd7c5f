// What a rank's memory is for, before any of it is taken.
#pragma once

#include <optional>
#include <string>

#include "model/model.h"

namespace ostro::engine {

struct MemoryPlan {
  std::size_t weights_bytes = 0;
  std::size_t step_bytes = 0;   // activations, indices and logits of the largest step
  std::size_t block_bytes = 0;  // one block of the KV cache

  std::size_t least_bytes() const { return weights_bytes + step_bytes + block_bytes; }
};

MemoryPlan plan_memory(const model::ModelConfig&, const model::Mapping&, std::int64_t rank,
                       const model::StepLimits&);

// The smallest number of tensor-parallel ranks, a power of two above the mapping's, on which every
// rank's plan fits `bytes`; none if there is none up to 64.
std::optional<std::int64_t> ranks_that_fit(const model::ModelConfig&, model::Mapping,
                                           const model::StepLimits&, std::size_t bytes);

// "81.23 GB"
std::string gigabytes(std::size_t bytes);

// Throws InvalidArgument, with the numbers and the settings that would fit, if the plan needs more
// than `free` bytes.
void require_fit(const MemoryPlan&, const model::ModelConfig&, const model::Mapping&,
                 const model::StepLimits&, std::size_t free);

}  // namespace ostro::engine
