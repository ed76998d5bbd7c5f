#include "plan/memory.h"

#include <algorithm>
#include <string_view>

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

}  // namespace

WeightBytes weights_of_rank(const model::ModelConfig& config, const model::Mapping& mapping,
                            std::int64_t rank) {
  WeightBytes bytes;
  for (const model::TensorSlice& t : model::tensors_of(config, mapping, rank))
    bytes.*kind_of(t.name) +=
        std::size_t(t.row_range.size() * t.col_range.size()) * size_of(t.dtype);
  return bytes;
}

MemoryPlan plan_memory(const model::ModelConfig& config, const model::Mapping& mapping,
                       std::int64_t rank, const model::StepLimits& limits) {
  MemoryPlan plan;
  plan.weights_bytes = weights_of_rank(config, mapping, rank).total();
  plan.step_bytes = model::Model::step_bytes(config, mapping, rank, limits);
  plan.block_bytes =
      std::size_t(model::kv_bytes_per_token(config, mapping, rank) * limits.block_tokens);
  return plan;
}

std::int64_t kv_blocks(const MemoryPlan& plan, double left, bool holds_step, double fraction) {
  const double room = (left - (holds_step ? double(plan.step_bytes) : 0)) * fraction;
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
              gigabytes(plan.step_bytes), ", the device has ", gigabytes(free), " free", advice);
}

}  // namespace ostro::plan
