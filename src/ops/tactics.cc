#include "ops/tactics.h"

#include <iterator>

namespace ostro::ops {

std::string describe(const Product& p) {
  const std::string_view type = p.weights == DType::u8 ? "int4" : name(p.weights);
  return text(p.experts > 0 ? text(p.experts, " x ") : "", type, " [", p.n, ',', p.k, ']',
              p.swiglu ? " swiglu" : "", p.grouped_x ? " grouped x" : "");
}

std::optional<Tactic> Tactics::find(const Product& product, std::int64_t tokens) const {
  const auto it = all_.find(product);
  if (it == all_.end()) return std::nullopt;
  const auto above = it->second.lower_bound(tokens);
  if (above == it->second.end()) return std::nullopt;
  if (above->first == tokens) return above->second;
  if (above == it->second.begin() || std::prev(above)->second != above->second) return std::nullopt;
  return above->second;
}

}  // namespace ostro::ops
