#include "ops/copy_blocks.h"

#include <cstring>
#include <set>

#include "ops/contract.h"

namespace ostro::ops {

void check(const CopyBlocks& op) {
  const Contract contract("CopyBlocks", op.kv.device);
  OSTRO_REQUIRE(op.planes > 0 && op.block_rows > 0, "CopyBlocks: ", op.planes, " planes of blocks ",
                "of ", op.block_rows, " rows, wanted 1 or more of each");
  contract.shape("kv", op.kv, op.kv.rows, op.kv.cols);
  OSTRO_REQUIRE(op.kv.rows % (op.planes * op.block_rows) == 0, "CopyBlocks: kv is ",
                describe(op.kv), ", wanted ", op.planes, " planes of whole blocks of ",
                op.block_rows, " rows");
  contract.shape("copies", op.copies, op.copies.rows, 2);
  contract.dtype("copies", op.copies, DType::i32);
}

void reference(const CopyBlocks& op) {
  check(op);
  OSTRO_CHECK(op.kv.device == Device::cpu, "a reference reads host memory");
  std::set<std::int32_t> read, written;
  for (std::int64_t i = 0; i < op.copies.rows; ++i) {
    const std::int32_t* pair = op.copies.row<const std::int32_t>(i);
    for (int j = 0; j < 2; ++j)
      OSTRO_REQUIRE(0 <= pair[j] && pair[j] < op.blocks(), "CopyBlocks: copies[", i, ',', j,
                    "] is ", pair[j], ", there are ", op.blocks(), " blocks");
    read.insert(pair[0]);
    OSTRO_REQUIRE(written.insert(pair[1]).second, "CopyBlocks: block ", pair[1],
                  " is written twice");
  }
  for (std::int32_t block : written)
    OSTRO_REQUIRE(!read.contains(block), "CopyBlocks: block ", block, " is written and read");
  const auto rows_of = [&](std::int64_t plane, std::int32_t block) {
    const std::int64_t first = (plane * op.blocks() + block) * op.block_rows;
    return op.kv.rows_of({first, first + op.block_rows});
  };
  for (std::int64_t i = 0; i < op.copies.rows; ++i) {
    const std::int32_t* pair = op.copies.row<const std::int32_t>(i);
    for (std::int64_t plane = 0; plane < op.planes; ++plane)
      for (std::int64_t r = 0; r < op.block_rows; ++r) {
        const View from = rows_of(plane, pair[0]).rows_of({r, r + 1});
        std::memcpy(rows_of(plane, pair[1]).rows_of({r, r + 1}).data, from.data, from.bytes());
      }
  }
}

}  // namespace ostro::ops
