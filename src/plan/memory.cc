#include "plan/memory.h"

#include <algorithm>
#include <string_view>

#include "base/math.h"
#include "model/step_arrays.h"
#include "ops/attention_parts.h"
#include "quant/e4m3.h"

namespace ostro::plan {
namespace {

std::size_t WeightBytes::*kind_of(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  if (has(".experts.")) return &WeightBytes::experts;
  if (has("router")) return &WeightBytes::router;
  if (has("norm")) return &WeightBytes::norms;
  if (name == "embedding") return &WeightBytes::embedding;
  if (name == "lm_head") return &WeightBytes::head;
  return &WeightBytes::attention;
}

// Rows of `cols` elements of `element` bytes, each row at 16 bytes.
std::size_t rows_bytes(std::int64_t rows, std::int64_t cols, std::size_t element) {
  return std::size_t(rows) * round_up(std::size_t(cols) * element, std::size_t{16});
}

bool rounds_int4(const model::ModelConfig& c, const model::StepLimits& limits) {
  return limits.fp8_prompts && c.quantization.weights == model::Quantization::Format::int4;
}

// Of an expert layer: the hidden activations as the down projection reads them, and what it gives.
std::size_t expert_scratch_bytes(const model::ModelConfig& c, const model::RankShape& s,
                                 const model::StepLimits& limits) {
  const std::int64_t tokens = limits.tokens;
  const bool fp8 = c.quantization.weights == model::Quantization::Format::fp8;
  const bool routed = c.experts > 0;
  const std::int64_t slots = tokens * (routed ? c.top_k : 1), inter = s.inter.size();
  const std::size_t element = fp8 ? 1 : size_of(c.dtype);
  std::size_t bytes = rows_bytes(slots, inter, element);
  if (rounds_int4(c, limits))
    bytes += rows_bytes(slots, inter, 1) + std::size_t(slots) * sizeof(float);
  if (fp8) bytes += std::size_t(slots * ceil_div(inter, quant::kE4m3Group)) * sizeof(float);
  if (!routed) return bytes;
  // Two integers a slot, a tile of 16 bytes for every eighth and each expert, its three weights.
  constexpr std::int64_t kExpertBytes = 256;
  return bytes + rows_bytes(slots, c.hidden, sizeof(float)) + std::size_t(slots * (8 + 2)) +
         std::size_t(s.experts.size() * kExpertBytes);
}

// The e4m3 rows of x, of the product that has most columns.
std::size_t rounded_bytes(const model::ModelConfig& c, const model::RankShape& s,
                          const model::StepLimits& limits) {
  const bool fp8 = c.quantization.weights == model::Quantization::Format::fp8;
  if (!fp8 && !rounds_int4(c, limits)) return 0;
  const std::int64_t tokens = limits.tokens;
  return rows_bytes(tokens, std::max(c.hidden, s.heads.size() * c.head_dim), 1) +
         std::size_t(tokens) * sizeof(float);
}

std::size_t attention_scratch_bytes(const model::ModelConfig& c, const model::RankShape& s,
                                    const model::StepLimits& limits) {
  const std::int64_t parts = limits.tokens * s.heads.size() *
                             ceil_div<std::int64_t>(limits.context, ops::kAttentionPartTokens);
  return std::size_t(std::min(parts, ops::kMostAttentionParts) *
                     ops::attention_part_floats(c.head_dim)) *
         sizeof(float);
}

// Of the graph of a decode step, for each layer, the rest of the step counted as one: 45 graphs of
// 32 layers took 128 MB on an H200, 86 KB a layer.
constexpr std::size_t kGraphBytesALayer = 96 << 10;
// What all graphs may take: a model of many layers and a long context has more shapes than it is
// worth to keep, and those that come first are kept (model::StepLimits::most_recorded_bytes).
constexpr std::size_t kMostGraphBytes = std::size_t{512} << 20;
// Channels and buffers of a group of GPUs (NCCL); an estimate.
constexpr std::size_t kGroupBytes = std::size_t{400} << 20;

}  // namespace

std::size_t kernel_scratch_bytes(const model::ModelConfig& config, const model::Mapping& mapping,
                                 std::int64_t rank, const model::StepLimits& limits) {
  const model::RankShape shape = model::shape_of(config, mapping, rank);
  const std::size_t bytes = expert_scratch_bytes(config, shape, limits) +
                            rounded_bytes(config, shape, limits) +
                            attention_scratch_bytes(config, shape, limits);
  return bytes + bytes / 4;
}

WeightBytes weights_of_rank(const model::ModelConfig& config, const model::Mapping& mapping,
                            std::int64_t rank) {
  WeightBytes bytes;
  for (const model::TensorSlice& t : model::tensors_of(config, mapping, rank))
    bytes.*kind_of(t.name) +=
        std::size_t(t.row_range.size() * t.col_range.size()) * size_of(t.dtype);
  return bytes;
}

std::size_t graphs_bytes(const model::ModelConfig& config, const model::Mapping& mapping,
                         std::int64_t rank, const model::StepLimits& limits) {
  const std::int64_t layers = model::shape_of(config, mapping, rank).layers.size() + 1;
  const std::int64_t shapes =
      model::padded_shapes(std::min({limits.tokens, limits.requests, limits.logit_rows}),
                           ceil_div(limits.context, limits.block_tokens));
  return std::min(std::size_t(shapes * layers) * kGraphBytesALayer, kMostGraphBytes);
}

MemoryPlan plan_memory(const model::ModelConfig& config, const model::Mapping& mapping,
                       std::int64_t rank, const model::StepLimits& limits) {
  MemoryPlan plan;
  plan.weights_bytes = weights_of_rank(config, mapping, rank).total();
  plan.step_bytes = model::Model::step_bytes(config, mapping, rank, limits);
  plan.block_bytes =
      std::size_t(model::kv_bytes_per_token(config, mapping, rank) * limits.block_tokens);
  plan.scratch_bytes = kernel_scratch_bytes(config, mapping, rank, limits);
  if (limits.record_steps) plan.graphs_bytes = graphs_bytes(config, mapping, rank, limits);
  plan.transport_bytes = std::size_t((mapping.tp > 1) + (mapping.pp > 1)) * kGroupBytes;
  return plan;
}

std::int64_t kv_blocks(const MemoryPlan& plan, double left, bool gpu, double fraction) {
  const double room = (left - (gpu ? double(plan.working_bytes()) : 0)) * fraction;
  return std::int64_t(std::max(room, 0.0) / double(plan.block_bytes));
}

Capacity capacity(const model::ModelConfig& config, const model::Mapping& mapping,
                  const model::StepLimits& limits, std::size_t free, double kv_fraction) {
  Capacity fewest;
  for (std::int64_t r = 0; r < mapping.ranks(); ++r) {
    const MemoryPlan plan = plan_memory(config, mapping, r, limits);
    const double left = double(free) - double(plan.weights_bytes);
    const std::int64_t blocks =
        plan.least_bytes() <= free ? kv_blocks(plan, left, true, kv_fraction) : 0;
    const std::int64_t tokens = blocks * limits.block_tokens;
    const bool fewer =
        tokens < fewest.kv_tokens ||
        (tokens == fewest.kv_tokens && plan.least_bytes() > fewest.plan.least_bytes());
    if (r == 0 || fewer) fewest = {.rank = r, .plan = plan, .kv_tokens = tokens};
  }
  return fewest;
}

std::optional<std::int64_t> ranks_that_fit(const model::ModelConfig& config, model::Mapping mapping,
                                           const model::StepLimits& limits, std::size_t bytes) {
  constexpr std::int64_t kMostRanks = 64;
  for (std::int64_t tp = 1; tp <= kMostRanks; tp *= 2) {
    if (tp <= mapping.tp) continue;
    model::Mapping m = mapping;
    m.tp = tp;
    m.moe_ep = tp % m.moe_ep == 0 ? m.moe_ep : 1;
    m.moe_tp = tp / m.moe_ep;
    try {
      model::check(m, config);
    } catch (const InvalidArgument&) {
      continue;
    }
    std::size_t most = 0;
    for (std::int64_t r = 0; r < m.ranks(); ++r)
      most = std::max(most, plan_memory(config, m, r, limits).least_bytes());
    if (most <= bytes) return tp;
  }
  return std::nullopt;
}

std::string gigabytes(std::size_t bytes) { return text(double(bytes / 10'000'000) / 100, " GB"); }

void require_fit(const MemoryPlan& plan, const model::ModelConfig& config,
                 const model::Mapping& mapping, const model::StepLimits& limits, std::size_t free) {
  if (plan.least_bytes() <= free) return;
  std::string advice;
  if (plan.weights_bytes + plan.block_bytes < free)
    advice = "; a smaller --max_batch_size (now " + text(limits.requests) +
             ") or --max_num_tokens (now " + text(limits.tokens) + ") takes less for a step";
  if (const auto tp = ranks_that_fit(config, mapping, limits, free))
    advice += text("; --tp_size ", *tp, " fits");
  OSTRO_THROW(InvalidArgument, "the model does not fit: its weights take ",
              gigabytes(plan.weights_bytes), " on this rank and a step ",
              gigabytes(plan.working_bytes()), ", the device has ", gigabytes(free), " free",
              advice);
}

}  // namespace ostro::plan
