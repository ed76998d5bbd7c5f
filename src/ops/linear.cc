#include "ops/linear.h"

#include "ops/contract.h"
#include "ops/host_matrix.h"

namespace ostro::ops {

void check(const Linear& op) {
  const Contract contract("Linear", op.x.device);
  contract.shape("x", op.x, op.x.rows, op.x.cols);
  contract.is_float("x", op.x);
  contract.weight("w", op.w, op.w.n(), op.x.cols, op.x.dtype);
  contract.activations(op.activations, "w", op.w);
  contract.shape("y", op.y, op.x.rows, op.w.n());
  contract.dtype_or_f32("y", op.y, op.x.dtype);
  contract.apart("y", op.y, "x", op.x);
}

void reference(const Linear& op) {
  check(op);
  HostMatrix x(op.x);
  const HostMatrix w(op.w);
  if (op.activations == Activations::e4m3_per_token) x.round_to_e4m3(op.x.cols);
  for (std::int64_t t = 0; t < op.x.rows; ++t)
    for (std::int64_t i = 0; i < op.w.n(); ++i)
      store(op.y, t, i, dot(x.row(t), w.row(i), op.x.cols));
}

}  // namespace ostro::ops
