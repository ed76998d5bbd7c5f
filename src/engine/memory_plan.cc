#include "engine/memory_plan.h"

#include <algorithm>

namespace ostro::engine {

MemoryPlan plan_memory(const model::ModelConfig& config, const model::Mapping& mapping,
                       std::int64_t rank, const model::StepLimits& limits) {
  MemoryPlan plan;
  for (const model::TensorSlice& t : model::tensors_of(config, mapping, rank))
    plan.weights_bytes += std::size_t(t.row_range.size() * t.col_range.size()) * size_of(t.dtype);
  plan.step_bytes = model::Model::step_bytes(config, mapping, rank, limits);
  plan.block_bytes =
      std::size_t(model::kv_bytes_per_token(config, mapping, rank) * limits.block_tokens);
  return plan;
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

}  // namespace ostro::engine
