#include "ops/embed.h"

#include <cstring>

#include "ops/contract.h"
#include "ops/host_matrix.h"

namespace ostro::ops {

void check(const Embed& op) {
  const Contract contract("Embed", op.table.device);
  const std::int64_t tokens = op.ids.cols, hidden = op.table.cols;
  contract.shape("ids", op.ids, 1, tokens);
  contract.dtype("ids", op.ids, DType::i32);
  contract.shape("table", op.table, op.table.rows, hidden);
  contract.is_float("table", op.table);
  contract.shape("y", op.y, tokens, hidden);
  contract.dtype("y", op.y, DType::f32);
  contract.apart("y", op.y, "table", op.table);
  OSTRO_REQUIRE(op.first_row >= 0, "Embed: first_row is ", op.first_row, ", wanted >= 0");
}

void reference(const Embed& op) {
  check(op);
  const HostMatrix table(op.table);
  for (std::int64_t t = 0; t < op.ids.cols; ++t) {
    const std::int64_t id = op.ids.as<const std::int32_t>()[t];
    OSTRO_REQUIRE(id >= 0, "Embed: ids[", t, "] is ", id, ", wanted >= 0");
    const std::int64_t row = id - op.first_row;
    const bool here = 0 <= row && row < op.table.rows;
    for (std::int64_t i = 0; i < op.table.cols; ++i) store(op.y, t, i, here ? table(row, i) : 0.0);
  }
}

void check(const GatherRows& op) {
  const Contract contract("GatherRows", op.x.device);
  contract.shape("x", op.x, op.x.rows, op.x.cols);
  contract.shape("rows", op.rows, 1, op.rows.cols);
  contract.dtype("rows", op.rows, DType::i32);
  contract.shape("y", op.y, op.rows.cols, op.x.cols);
  contract.dtype("y", op.y, op.x.dtype);
  contract.apart("y", op.y, "x", op.x);
}

void reference(const GatherRows& op) {
  check(op);
  OSTRO_CHECK(op.x.device == Device::cpu, "a reference reads host memory");
  for (std::int64_t i = 0; i < op.rows.cols; ++i) {
    const std::int64_t t = op.rows.as<const std::int32_t>()[i];
    OSTRO_REQUIRE(0 <= t && t < op.x.rows, "GatherRows: rows[", i, "] is ", t, ", x is ",
                  describe(op.x));
    const View from = op.x.rows_of({t, t + 1});
    std::memcpy(op.y.rows_of({i, i + 1}).data, from.data, from.bytes());
  }
}

}  // namespace ostro::ops
