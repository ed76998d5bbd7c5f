// How far a model's predictions are from a reference's.
#pragma once

#include <cstdint>
#include <span>

namespace ostro::eval {

// Kullback-Leibler divergence of the model's distribution Q from the reference's P over the next
// token, in nats, sum_t P(t) (ln P(t) - ln Q(t)); Kullback and Leibler 1951.
double divergence(std::span<const float> reference_logits, std::span<const float> model_logits);

// Over the tokens that were scored.
class Divergences {
 public:
  // The logits [vocab] of both at one place.
  void add(std::span<const float> reference_logits, std::span<const float> model_logits);

  std::int64_t tokens() const { return tokens_; }
  double mean() const { return sum_ / double(tokens_); }
  double max() const { return max_; }
  // Part of the tokens for which both have the same likeliest token (the lower id among equals).
  double top1_agreement() const { return double(agree_) / double(tokens_); }

 private:
  std::int64_t tokens_ = 0, agree_ = 0;
  double sum_ = 0, max_ = 0;
};

}  // namespace ostro::eval
