#include "plan/layouts.h"

#include <algorithm>

#include "base/error.h"

namespace ostro::plan {

std::vector<model::Mapping> mappings(const model::ModelConfig& config, std::int64_t ranks,
                                     std::int64_t node) {
  std::vector<model::Mapping> all;
  for (std::int64_t tp = 1; tp <= std::min(ranks, node); ++tp) {
    if (ranks % tp != 0) continue;
    for (std::int64_t ep = 1; ep <= tp; ++ep) {
      if (tp % ep != 0) continue;
      const model::Mapping m{.tp = tp, .pp = ranks / tp, .moe_tp = tp / ep, .moe_ep = ep};
      try {
        model::check(m, config);
      } catch (const InvalidArgument&) {
        continue;
      }
      all.push_back(m);
    }
  }
  return all;
}

std::vector<std::string> what_would_fit(const Question& q, const model::Mapping& mapping) {
  const auto fits = [](const Question& changed, const model::Mapping& m) {
    return capacity(changed.config, m, changed.limits, changed.free_bytes(), changed.kv_fraction)
        .fits();
  };
  std::vector<std::string> flags;
  constexpr std::int64_t kMostRanks = 64;
  for (std::int64_t n = mapping.ranks() + 1; n <= kMostRanks && flags.empty(); ++n)
    for (const model::Mapping& m : mappings(q.config, n, q.machine.gpus_per_node))
      if (m.moe_ep == 1 && fits(q, m))
        flags.push_back(text("--tp_size ", m.tp, " --pp_size ", m.pp));
  using Format = model::Quantization::Format;
  Question smaller = q;
  if (smaller.config.quantization.weights == Format::none) {
    smaller.config.quantization.weights = Format::fp8;
    if (fits(smaller, mapping)) flags.push_back("--enable_fp8");
    smaller.config.quantization.weights = Format::int4;
    try {
      model::check(mapping, smaller.config);
      if (fits(smaller, mapping)) flags.push_back("--use_weight_only --weight_only_precision int4");
    } catch (const InvalidArgument&) {  // a rank would hold part of a group
    }
  }
  smaller = q;
  while (smaller.limits.tokens > 1) {
    smaller.limits.tokens = smaller.limits.tokens / 2;
    smaller.limits.requests = std::min(smaller.limits.requests, smaller.limits.tokens);
    smaller.limits.logit_rows = smaller.limits.requests;
    if (!fits(smaller, mapping)) continue;
    flags.push_back(text("--max_batch_size ", smaller.limits.requests, " --max_num_tokens ",
                         smaller.limits.tokens));
    break;
  }
  return flags;
}

std::vector<Layout> layouts(const Question& q, std::int64_t gpus) {
  std::vector<Layout> all;
  for (std::int64_t each = 1; each <= gpus; ++each) {
    if (gpus % each != 0) continue;
    for (const model::Mapping& m : mappings(q.config, each, q.machine.gpus_per_node))
      all.push_back({.engines = gpus / each, .mapping = m, .estimate = estimate(q, m)});
  }
  return all;
}

std::optional<Layout> best(const std::vector<Layout>& all, Goal goal) {
  constexpr double kAlike = 1.03;
  const auto rate = [](const Layout& l) { return l.output_per_s(); };
  const auto speed = [](const Layout& l) { return 1 / l.estimate.alone_token_s; };
  double most = 0;
  const auto first = [&](const Layout& l) { return goal == Goal::throughput ? rate(l) : speed(l); };
  const auto second = [&](const Layout& l) {
    return goal == Goal::throughput ? speed(l) : rate(l);
  };
  for (const Layout& l : all)
    if (l.estimate.sequences > 0) most = std::max(most, first(l));
  const Layout* chosen = nullptr;
  for (const Layout& l : all) {
    if (l.estimate.sequences == 0 || first(l) * kAlike < most) continue;
    if (!chosen || second(l) > second(*chosen)) chosen = &l;
  }
  return chosen ? std::optional(*chosen) : std::nullopt;
}

}  // namespace ostro::plan
