// What a rank's memory is for, before any of it is taken, and what is left for keys and values.
#pragma once

#include <optional>
#include <string>

#include "model/model.h"

namespace ostro::plan {

// Bytes of a rank's weights, scales of quantised ones with them.
struct WeightBytes {
  std::size_t embedding = 0, attention = 0, router = 0, experts = 0, norms = 0, head = 0;

  std::size_t total() const { return embedding + attention + router + experts + norms + head; }
};

WeightBytes weights_of_rank(const model::ModelConfig&, const model::Mapping&, std::int64_t rank);

struct MemoryPlan {
  std::size_t weights_bytes = 0;
  std::size_t step_bytes = 0;   // activations, indices and logits of the largest step
  std::size_t block_bytes = 0;  // one block of the KV cache

  std::size_t least_bytes() const { return weights_bytes + step_bytes + block_bytes; }
};

MemoryPlan plan_memory(const model::ModelConfig&, const model::Mapping&, std::int64_t rank,
                       const model::StepLimits&);

// Blocks of a KV cache that takes `fraction` of what is `left` beside the weights, and beside the
// step where that has not touched its memory yet (`holds_step`).
std::int64_t kv_blocks(const MemoryPlan&, double left, bool holds_step, double fraction);

// A layout's KV cache, each rank on a GPU of its own with `free` bytes: all ranks have as many
// blocks as the one with the fewest.
struct Capacity {
  std::int64_t rank = 0;       // the one with the fewest
  MemoryPlan plan;             // of it
  std::int64_t kv_tokens = 0;  // 0: the model does not fit

  bool fits() const { return kv_tokens > 0; }
};

Capacity capacity(const model::ModelConfig&, const model::Mapping&, const model::StepLimits&,
                  std::size_t free, double kv_fraction);

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

}  // namespace ostro::plan
