// Which of several ways to one result a backend takes for the products of a model.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "quant/weight.h"

namespace ostro::ops {

// Rows times weights of one shape: y = x W^T, or with `swiglu` that of gate and up together. With
// `experts` the products of ExpertMlp by so many local experts; then n is inter, k hidden.
struct Product {
  DType weights = DType::bf16;
  std::int64_t n = 0;
  std::int64_t k = 0;
  bool swiglu = false;
  std::int64_t experts = 0;
  bool grouped_x = false;  // x has a scale for each 128 columns, not one a row

  auto operator<=>(const Product&) const = default;
};

inline Product product(const quant::Weight& w, bool swiglu, std::int64_t experts = 0) {
  return {w.data.dtype, w.n(), w.k(), swiglu, experts};
}

// That product as the down projection of ExpertMlp without routing: its x has a scale for each 128
// columns if the weights are e4m3 (ops/activations.h).
inline Product as_down(Product p) {
  p.grouped_x = p.weights == DType::f8e4m3;
  return p;
}

// "bf16 [6144,4096]", "8 x f8e4m3 [14336,4096] swiglu", "f8e4m3 [4096,14336] grouped x", for
// messages.
std::string describe(const Product&);

// A backend's own number for a way to a product: its results do not depend on it.
using Tactic = int;

// The tactics that were chosen for products of some numbers of tokens.
class Tactics {
 public:
  using ByTokens = std::map<std::int64_t, Tactic>;

  void set(const Product& p, std::int64_t tokens, Tactic tactic) { all_[p][tokens] = tactic; }

  // What was chosen for so many tokens. Between two numbers with the same choice, that; where they
  // differ, and beyond both ends, nothing.
  std::optional<Tactic> find(const Product&, std::int64_t tokens) const;

  const std::map<Product, ByTokens>& all() const { return all_; }
  bool operator==(const Tactics&) const = default;

 private:
  std::map<Product, ByTokens> all_;
};

}  // namespace ostro::ops
