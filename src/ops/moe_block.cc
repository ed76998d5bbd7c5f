#include "ops/moe_block.h"

#include "base/error.h"

namespace ostro::ops {
namespace {

bool same(const View& a, const View& b) {
  return a.data == b.data && same_shape(a, b) && a.dtype == b.dtype && a.device == b.device &&
         (a.rows <= 1 || a.row_stride == b.row_stride);
}

void handed_on(std::string_view operand, const View& v, std::string_view from, const View& wanted) {
  OSTRO_REQUIRE(same(v, wanted), "MoeBlock: ", operand, " is ", describe(v), ", wanted ", from,
                ", which is ", describe(wanted), same_shape(v, wanted) ? " elsewhere" : "");
}

}  // namespace

void check(const MoeBlock& op) {
  check(op.norm);
  check(op.route);
  check(op.mlp);
  check(op.next);
  OSTRO_REQUIRE(!op.norm.for_products,
                "MoeBlock: norm.y is for products alone, but route reads it");
  handed_on("route.x", op.route.x, "norm.y", op.norm.y);
  handed_on("mlp.x", op.mlp.x, "norm.y", op.norm.y);
  handed_on("mlp.experts", op.mlp.experts, "route.experts", op.route.experts);
  handed_on("mlp.weights", op.mlp.weights, "route.weights", op.route.weights);
  handed_on("next.x", op.next.x, "mlp.y", op.mlp.y);
}

void reference(const MoeBlock& op) {
  check(op);
  reference(op.norm);
  reference(op.route);
  reference(op.mlp);
  reference(op.next);
}

}  // namespace ostro::ops
