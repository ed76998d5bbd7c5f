#include "ops/norm.h"

#include <cmath>

#include "ops/contract.h"
#include "ops/host_matrix.h"

namespace ostro::ops {

void check(const AddRmsNorm& op) {
  const Contract contract("AddRmsNorm", op.residual.device);
  const std::int64_t tokens = op.residual.rows, hidden = op.residual.cols;
  contract.shape("residual", op.residual, tokens, hidden);
  contract.dtype("residual", op.residual, DType::f32);
  if (op.x) {
    contract.shape("x", op.x, tokens, hidden);
    contract.dtype("x", op.x, DType::f32);
  }
  OSTRO_REQUIRE(op.y || op.activations == Activations::as_is,
                "AddRmsNorm: activations to round, but no y");
  OSTRO_REQUIRE(!op.for_products || op.activations != Activations::as_is,
                "AddRmsNorm: y is for products alone, which do not round it");
  if (op.y) {
    contract.shape("y", op.y, tokens, hidden);
    contract.is_float("y", op.y);
    contract.apart("y", op.y, "residual", op.residual);
    contract.apart("y", op.y, "x", op.x);
    contract.shape("weight", op.weight, 1, hidden);
    contract.is_float("weight", op.weight);
    OSTRO_REQUIRE(op.eps > 0, "AddRmsNorm: eps is ", op.eps, ", wanted > 0");
  }
}

void reference(const AddRmsNorm& op) {
  check(op);
  OSTRO_CHECK(op.residual.device == Device::cpu, "a reference reads host memory");
  const std::int64_t tokens = op.residual.rows, hidden = op.residual.cols;
  if (op.x)
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < hidden; ++i)
        op.residual.row<float>(t)[i] += op.x.row<const float>(t)[i];
  if (!op.y) return;
  const HostMatrix weight(op.weight);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* residual = op.residual.row<const float>(t);
    const double mean_square = dot(residual, residual, hidden) / double(hidden);
    const double scale = 1 / std::sqrt(mean_square + op.eps);
    for (std::int64_t i = 0; i < hidden; ++i)
      store(op.y, t, i, double(weight(0, i)) * residual[i] * scale);
  }
}

}  // namespace ostro::ops
