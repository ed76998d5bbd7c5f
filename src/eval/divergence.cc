#include "eval/divergence.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace ostro::eval {
namespace {

// ln sum exp, by way of the largest.
double log_sum_exp(std::span<const float> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float v : x) sum += std::exp(double(v) - largest);
  return largest + std::log(sum);
}

}  // namespace

double divergence(std::span<const float> p, std::span<const float> q) {
  OSTRO_CHECK(p.size() == q.size() && !p.empty(), p.size(), " and ", q.size(), " logits");
  const double p_total = log_sum_exp(p), q_total = log_sum_exp(q);
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double log_p = double(p[i]) - p_total;
    sum += std::exp(log_p) * (log_p - (double(q[i]) - q_total));
  }
  return std::max(sum, 0.0);  // it is never negative but by rounding
}

void Divergences::add(std::span<const float> reference, std::span<const float> model) {
  const double d = divergence(reference, model);
  ++tokens_;
  sum_ += d;
  max_ = std::max(max_, d);
  const auto likeliest = [](std::span<const float> x) {
    return std::max_element(x.begin(), x.end()) - x.begin();
  };
  agree_ += likeliest(reference) == likeliest(model);
}

}  // namespace ostro::eval
