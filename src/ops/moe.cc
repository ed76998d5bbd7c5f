#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/contract.h"
#include "ops/host_matrix.h"

namespace ostro::ops {
namespace {

constexpr std::int64_t kMaxExperts = 1024;

std::vector<double> softmax(const std::vector<double>& logits) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double z : logits) sum += std::exp(z - highest);
  std::vector<double> p;
  for (double z : logits) p.push_back(std::exp(z - highest) / sum);
  return p;
}

// The index of the largest p that is not in `taken`, the lowest among equals. A NaN is never
// larger, so the answer is an index even if all are NaN.
std::int64_t largest_left(const std::vector<double>& p, const std::vector<std::int64_t>& taken) {
  std::int64_t best = -1;
  for (std::int64_t e = 0; e < std::int64_t(p.size()); ++e) {
    if (std::find(taken.begin(), taken.end(), e) != taken.end()) continue;
    if (best < 0 || p[std::size_t(e)] > p[std::size_t(best)]) best = e;
  }
  return best;
}

double silu(double z) { return z / (1 + std::exp(-z)); }

}  // namespace

void check(const Route& op) {
  const Contract contract("Route", op.x.device);
  const std::int64_t tokens = op.x.rows, experts = op.router.n(), top_k = op.experts.cols;
  contract.shape("x", op.x, tokens, op.x.cols);
  contract.is_float("x", op.x);
  contract.float_weight("router", op.router, experts, op.x.cols, op.x.dtype);
  contract.shape("experts", op.experts, tokens, top_k);
  contract.dtype("experts", op.experts, DType::i32);
  contract.shape("weights", op.weights, tokens, top_k);
  contract.dtype("weights", op.weights, DType::f32);
  contract.apart("weights", op.weights, "experts", op.experts);
  if (op.counts) {
    contract.shape("counts", op.counts, 1, experts);
    contract.dtype("counts", op.counts, DType::i32);
  }
  OSTRO_REQUIRE(1 <= top_k && top_k <= experts && experts <= kMaxExperts, "Route: top_k is ", top_k,
                " of ", experts, " experts, wanted 1 <= top_k <= experts <= ", kMaxExperts);
  if (!op.live) return;
  contract.shape("live", op.live, 1, 1);
  contract.dtype("live", op.live, DType::i32);
}

void reference(const Route& op) {
  check(op);
  const HostMatrix x(op.x), router(op.router);
  const std::int64_t live = op.live ? *op.live.as<const std::int32_t>() : op.x.rows;
  for (std::int64_t t = 0; t < op.x.rows; ++t) {
    if (t >= live) {
      std::fill_n(op.experts.row<std::int32_t>(t), op.experts.cols, -1);
      std::fill_n(op.weights.row<float>(t), op.experts.cols, 0.0f);
      continue;
    }
    std::vector<double> logits;
    for (std::int64_t e = 0; e < op.router.n(); ++e)
      logits.push_back(dot(x.row(t), router.row(e), op.x.cols));
    const std::vector<double> p = softmax(logits);

    std::vector<std::int64_t> chosen;
    double sum = 0;
    for (std::int64_t j = 0; j < op.experts.cols; ++j) {
      chosen.push_back(largest_left(p, chosen));
      sum += p[std::size_t(chosen.back())];
    }
    for (std::int64_t j = 0; j < op.experts.cols; ++j) {
      const std::int64_t e = chosen[std::size_t(j)];
      op.experts.row<std::int32_t>(t)[j] = std::int32_t(e);
      if (op.counts) ++static_cast<std::uint32_t*>(op.counts.data)[e];
      store(op.weights, t, j, p[std::size_t(e)] / (op.renormalize ? sum : 1));
    }
  }
}

void check(const ExpertMlp& op) {
  const Contract contract("ExpertMlp", op.x.device);
  const std::int64_t tokens = op.x.rows, hidden = op.x.cols;
  contract.shape("x", op.x, tokens, hidden);
  contract.is_float("x", op.x);
  contract.shape("y", op.y, tokens, hidden);
  contract.dtype("y", op.y, DType::f32);
  contract.apart("y", op.y, "x", op.x);
  if (op.experts) {
    contract.shape("experts", op.experts, tokens, op.experts.cols);
    contract.dtype("experts", op.experts, DType::i32);
    contract.shape("weights", op.weights, tokens, op.experts.cols);
    contract.dtype("weights", op.weights, DType::f32);
    contract.apart("y", op.y, "weights", op.weights);
    OSTRO_REQUIRE(op.first_expert >= 0, "ExpertMlp: first_expert is ", op.first_expert,
                  ", wanted >= 0");
  } else {
    OSTRO_REQUIRE(op.local.size() == 1 || tokens == 0, "ExpertMlp: ", op.local.size(),
                  " local experts and no choice of experts, wanted 1");
    OSTRO_REQUIRE(!op.weights, "ExpertMlp: weights is ", describe(op.weights),
                  " without a choice of experts");
  }
  for (const Expert& expert : op.local) {
    const std::int64_t inter = op.local.front().gate.n();
    contract.weight("gate", expert.gate, inter, hidden, op.x.dtype);
    contract.weight("up", expert.up, inter, hidden, op.x.dtype);
    contract.weight("down", expert.down, hidden, inter, op.x.dtype);
    contract.activations(op.activations, "gate", expert.gate);
    contract.activations(op.activations, "up", expert.up);
    contract.activations(op.activations, "down", expert.down);
  }
}

std::int64_t hidden_group(const ExpertMlp& op) {
  if (op.local.empty() || !op.local.front().gate.is_int4()) return quant::kE4m3Group;
  return std::max<std::int64_t>(1, op.local.front().gate.n());
}

void reference(const ExpertMlp& op) {
  check(op);
  struct Decoded {
    HostMatrix gate, up, down;
  };
  std::vector<Decoded> local;
  for (const Expert& e : op.local)
    local.push_back({HostMatrix(e.gate), HostMatrix(e.up), HostMatrix(e.down)});

  const bool e4m3 = op.activations == Activations::e4m3_per_token;
  HostMatrix x(op.x);
  if (e4m3) x.round_to_e4m3(op.x.cols);
  const std::int64_t hidden = op.x.cols;
  const std::int64_t inter = op.local.empty() ? 0 : op.local.front().gate.n();
  const std::int64_t group = hidden_group(op);
  const std::int64_t top_k = op.experts ? op.experts.cols : 1;
  // h = silu(gate x) * (up x), rounded.
  std::vector<float> h(std::size_t(inter), 0.0f);

  for (std::int64_t t = 0; t < op.x.rows; ++t) {
    std::vector<double> y(std::size_t(hidden), 0.0);
    for (std::int64_t j = 0; j < top_k; ++j) {
      const std::int64_t e =
          op.experts ? op.experts.row<const std::int32_t>(t)[j] - op.first_expert : 0;
      if (e < 0 || e >= std::int64_t(local.size())) continue;
      const Decoded& expert = local[std::size_t(e)];
      const double weight = op.experts ? op.weights.row<const float>(t)[j] : 1.0f;

      for (std::int64_t i = 0; i < inter; ++i) {
        const double gate = dot(x.row(t), expert.gate.row(i), hidden);
        const double up = dot(x.row(t), expert.up.row(i), hidden);
        h[std::size_t(i)] = rounded(silu(gate) * up, e4m3 ? DType::f32 : op.x.dtype);
      }
      if (e4m3) quant::e4m3_round(h.data(), inter, group);
      for (std::int64_t i = 0; i < hidden; ++i)
        y[std::size_t(i)] += weight * dot(expert.down.row(i), h.data(), inter);
    }
    for (std::int64_t i = 0; i < hidden; ++i) store(op.y, t, i, y[std::size_t(i)]);
  }
}

}  // namespace ostro::ops
