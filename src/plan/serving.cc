#include "plan/serving.h"

#include <algorithm>
#include <cmath>

namespace ostro::plan {

Estimate estimate(const Question& q, const model::Mapping& mapping) {
  const Workload& work = q.work;
  Estimate e;
  e.memory = capacity(q.config, mapping, q.limits, q.free_bytes(), q.kv_fraction);
  const double parts = q.stages_overlap ? double(mapping.pp) : 1;  // of the batch
  const double half_way = work.input + work.output / 2;
  const auto stage = [&](const StepLoad& load, std::int64_t i) {
    return stage_time(q.config, mapping, q.machine, load, i, q.sum_bytes);
  };

  const StepLoad token{.decodes = 1, .context = half_way};
  const StepLoad prompt{.prompt_tokens = work.input, .prompt_context = work.input / 2};
  for (std::int64_t i = 0; i < mapping.pp; ++i) {
    e.alone_token_s += stage(token, i).total();
    e.alone_prompt_s += stage(prompt, i).total();
  }

  const double occupied = work.guaranteed ? work.input + work.output : half_way;
  const double prompts_a_token = work.input / work.output;
  // Each part has limits.tokens rows at most, decoded ones and their share of prompts.
  const double step_room = parts * double(q.limits.tokens) / (1 + prompts_a_token);
  e.sequences =
      std::min({double(q.limits.requests), double(e.memory.kv_tokens) / occupied, step_room});
  if (!e.memory.fits() || e.sequences < 1) {
    e.sequences = 0;
    return e;
  }
  const double part = e.sequences / parts;
  const StepLoad load{.decodes = part,
                      .context = half_way,
                      .prompt_tokens = part * prompts_a_token,
                      .prompt_context = work.input / 2};
  double all = 0;
  for (std::int64_t i = 0; i < mapping.pp; ++i) {
    const StageTime t = stage(load, i);
    all += t.total();
    if (t.total() > e.busiest.total()) e.busiest = t;
  }
  e.per_token_s = q.stages_overlap ? parts * e.busiest.total() : all;
  e.output_per_s = e.sequences / e.per_token_s;
  return e;
}

}  // namespace ostro::plan
