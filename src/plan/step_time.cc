#include "plan/step_time.h"

#include <algorithm>
#include <cmath>

#include "plan/work.h"

namespace ostro::plan {
namespace {

// The busiest of `groups` over their mean, for `choices` that each fall on one of them.
double imbalance(double groups, double choices) {
  if (groups <= 1 || choices <= 0) return 1;
  const double mean = choices / groups;
  return std::min(groups, 1 + std::sqrt(2 * std::log(groups) * (1 - 1 / groups) / mean));
}

double ring_bytes(double ranks, double bytes) { return 2 * (ranks - 1) / ranks * bytes; }

double matrix_rate(const model::ModelConfig& c, const Machine& machine) {
  return c.quantization.weights == model::Quantization::Format::fp8 ? machine.fp8_flop_per_s
                                                                    : machine.matrix_flop_per_s;
}

}  // namespace

StageTime stage_time(const model::ModelConfig& c, const model::Mapping& mapping,
                     const Machine& machine, const StepLoad& load, std::int64_t stage,
                     double sum_bytes) {
  const model::RankShape s = model::shape_of(c, mapping, stage * mapping.tp);
  const auto layers = double(s.layers.size()), hidden = double(c.hidden);
  const auto head_dim = double(c.head_dim), heads = double(s.heads.size()),
             kv_heads = double(s.kv_heads.size());
  const double rows = load.rows(), element = double(size_of(c.dtype));
  const double matrices = matrix_rate(c, machine);
  const auto phase = [&](double bytes, double flop, double rate) {
    return std::max(bytes / machine.read_bytes_per_s, flop / rate);
  };
  StageTime t;

  const double all = double(c.feed_forwards()), top_k = c.experts > 0 ? double(c.top_k) : 1;
  const auto local = double(s.experts.size());
  const double busy = imbalance(double(mapping.moe_ep), rows * top_k);
  const double expert = 3 * hidden * double(s.inter.size());
  const double in_use = std::min(local, busy * local * (1 - std::pow(1 - top_k / all, rows)));
  t.experts = phase(layers * in_use * expert_bytes(c, double(s.inter.size())),
                    2 * layers * expert * rows * top_k / all * local * busy, matrices);

  const double dense = hidden * head_dim * (2 * heads + 2 * kv_heads);
  const double router = hidden * double(c.experts);
  t.dense = phase(layers * (attention_bytes(c, heads, kv_heads) + router * element),
                  2 * layers * (dense + router) * rows, matrices);

  const double window = c.window > 0 ? double(c.window) : HUGE_VAL;
  const double cached = load.decodes * std::min(load.context, window);
  const double attended = load.prompt_tokens * std::min(load.prompt_context, window);
  const double flop_each = 4 * layers * heads * head_dim;
  t.attention = phase(cached * layers * kv_bytes(c, kv_heads), cached * flop_each,
                      machine.matrix_flop_per_s) +
                attended * flop_each / machine.matrix_flop_per_s;

  const double logit_rows = std::max(load.decodes, 1.0);
  const auto ranks = double(mapping.tp);
  const bool one_node = mapping.tp <= machine.gpus_per_node;
  const Link& link = one_node ? machine.inside : machine.between;
  const auto collective = [&](double bytes_each) {
    t.wire_bytes += bytes_each;
    t.all_reduce += link.latency_s + bytes_each / link.bytes_per_s;
  };
  if (mapping.tp > 1) {
    const double sum = ring_bytes(ranks, rows * hidden * sum_bytes);
    for (double i = 0; i < 2 * layers; ++i) collective(sum);
    if (s.first_stage && mapping.parallel_embedding) collective(sum);
  }
  if (s.last_stage) {
    const double head = hidden * double(s.vocab.size());
    t.head = phase(head * element, 2 * head * logit_rows, machine.matrix_flop_per_s);
    if (mapping.tp > 1) collective((ranks - 1) / ranks * logit_rows * double(c.vocab) * 4);
  } else {
    const auto node = [&](std::int64_t of) { return of * mapping.tp / machine.gpus_per_node; };
    const Link& next = node(stage) == node(stage + 1) ? machine.inside : machine.between;
    const double bytes = rows * hidden * sum_bytes;
    t.wire_bytes += bytes;
    t.send = next.latency_s + bytes / next.bytes_per_s;
  }
  return t;
}

double ridge_tokens(const model::ModelConfig& c, const Machine& machine) {
  // Of their rate products of some hundred rows reach two thirds, reading nearly all
  // (docs/PERFORMANCE.md). Measured of Mixtral 8x7B in fp8: steps of 256 and 512 tokens take 19.5
  // and 22.2 ms, of 1024 36.
  constexpr double kReached = 0.65;
  constexpr double kAllExperts = 1e6;  // rows
  const double read = work_of_step(c, kAllExperts, 0).bytes / machine.read_bytes_per_s;
  const double row = 2 * work_of_step(c, 1, 0).multiply_adds / (kReached * matrix_rate(c, machine));
  return read / row;
}

}  // namespace ostro::plan
