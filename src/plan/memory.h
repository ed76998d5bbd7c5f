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

// The last three are a GPU's; a CPU has little of the kind, and is not asked.
struct MemoryPlan {
  std::size_t weights_bytes = 0;
  std::size_t step_bytes = 0;       // activations, indices and logits of the largest step
  std::size_t block_bytes = 0;      // one block of the KV cache
  std::size_t scratch_bytes = 0;    // at most, of the kernels of the largest step
  std::size_t graphs_bytes = 0;     // reserved for recorded steps
  std::size_t transport_bytes = 0;  // reserved for what a transport between GPUs keeps on them

  // What a step takes beside weights and cache.
  std::size_t working_bytes() const {
    return step_bytes + scratch_bytes + graphs_bytes + transport_bytes;
  }
  std::size_t least_bytes() const { return weights_bytes + working_bytes() + block_bytes; }
};

// What the CUDA backend's kernels keep beside what they are given, at most: rows of activations in
// the order of their experts, rounded to e4m3 where weights are, or are int4 and
// limits.fp8_prompts; the hidden activations and outputs of every slot; parts of long contexts. A
// quarter more than that, by which workspaces grow.
std::size_t kernel_scratch_bytes(const model::ModelConfig&, const model::Mapping&,
                                 std::int64_t rank, const model::StepLimits&);

// Reserved for the CUDA graphs of decode steps: what all that a rank may record take, up to 512
// MiB.
std::size_t graphs_bytes(const model::ModelConfig&, const model::Mapping&, std::int64_t rank,
                         const model::StepLimits&);

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
