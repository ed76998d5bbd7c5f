// Embed and GatherRows: the contracts in ops/embed.h, for every backend of this build.
#include "ops/embed.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

void compare_embed(std::int64_t tokens, std::int64_t hidden, std::int64_t rows, DType dtype) {
  SCOPED_TRACE(text("tokens ", tokens, " hidden ", hidden, " rows ", rows, ' ', name(dtype)));
  constexpr std::int64_t kFirstRow = 10;
  Matrix table = Matrix(dtype, rows, hidden, 3).random(1);
  Matrix ids(DType::i32, 1, tokens);
  // Rows of this slice, of the one before and of the one after.
  for (std::int64_t t = 0; t < tokens; ++t)
    ids.set_integer(0, t, std::int32_t(t * 7 % (rows + 2 * kFirstRow)));
  Matrix want(DType::f32, tokens, hidden, 2);
  const auto op = [&](Matrix& y) {
    return Embed{.ids = ids.view(), .table = table.view(), .y = y.view(), .first_row = kFirstRow};
  };
  reference(op(want));
  on_every_target(
      [&](Backend& backend) {
        Matrix y(DType::f32, tokens, hidden, 2);
        backend.run(op(y));
        backend.wait();
        return std::vector<Matrix>{y};
      },
      [&](const std::vector<Matrix>& got) { expect_equal(got[0], want); });
}

TEST(Embed, MatchesReference) {
  for (DType dtype : kFloats) {
    for (std::int64_t tokens : {0, 1, 2, 37})
      for (std::int64_t hidden : {1, 7, 15, 16, 17, 63, 64, 65})
        for (std::int64_t rows : {0, 1, 13}) compare_embed(tokens, hidden, rows, dtype);
    compare_embed(5, 4096, 40, dtype);
  }
}

TEST(Embed, OfASlice) {
  Matrix table = Matrix(DType::bf16, 2, 2).floats({1, 2, 3, 4});  // rows 5 and 6 of the vocabulary
  Matrix ids = Matrix(DType::i32, 1, 4).integers({6, 4, 5, 7});
  Matrix y(DType::f32, 4, 2);
  const Matrix want = Matrix(DType::f32, 4, 2).floats({3, 4, 0, 0, 1, 2, 0, 0});
  const Embed op{.ids = ids.view(), .table = table.view(), .y = y.view(), .first_row = 5};
  reference(op);
  expect_equal(y, want);
  ids.set_integer(0, 1, -3);
  expect_error<InvalidArgument>([&] { reference(op); }, "Embed: ids[1] is -3, wanted >= 0");
}

TEST(Embed, RefusesWhatTheContractDoes) {
  Matrix table(DType::bf16, 3, 8), ids(DType::i32, 1, 2), y(DType::f32, 2, 8);
  const Embed good{.ids = ids.view(), .table = table.view(), .y = y.view(), .first_row = 0};
  check(good);
  Embed op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.ids.rows = 2;
  refuses("Embed: ids is i32 [2,2], wanted [1,2]");
  op.ids.dtype = DType::f32;
  refuses("Embed: ids is f32 [1,2], wanted i32");
  op.y.cols = 7;
  refuses("Embed: y is f32 [2,7], wanted [2,8]");
  op.y.dtype = DType::bf16;
  refuses("Embed: y is bf16 [2,8], wanted f32");
  op.first_row = -1;
  refuses("Embed: first_row is -1, wanted >= 0");
  op.y.device = Device::cuda;
  refuses("Embed: y is on cuda, wanted cpu");
  op.y.data = table.view().data;
  refuses("Embed: y is the memory of table");
  op.table.dtype = DType::u8;
  expect_error<Unsupported>([&] { check(op); },
                            "Embed: table has no u8 version; it has: f32 f16 bf16");
}

TEST(GatherRows, CopiesRowsOfAnyType) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i32})
    for (std::int64_t m : {0, 1, 2, 17})
      for (std::int64_t n : {1, 7, 16, 33, 4096}) {
        SCOPED_TRACE(text(name(dtype), " m ", m, " n ", n));
        Matrix x = Matrix(dtype, 13, n, 3).random(1);
        Matrix rows(DType::i32, 1, m);
        for (std::int64_t i = 0; i < m; ++i) rows.set_integer(0, i, std::int32_t(12 - i * 5 % 13));
        on_every_target(
            [&](Backend& backend) {
              Matrix y(dtype, m, n, 2);
              backend.run(GatherRows{.x = x.view(), .rows = rows.view(), .y = y.view()});
              backend.wait();
              return std::vector<Matrix>{y};
            },
            [&](const std::vector<Matrix>& got) {
              for (std::int64_t i = 0; i < m; ++i)
                ASSERT_EQ(got[0].row_bits(i) == x.row_bits(rows.integer(0, i)), true) << i;
            });
      }
}

TEST(GatherRows, ReferenceChecksTheRows) {
  Matrix x = Matrix(DType::f32, 2, 2).floats({1, 2, 3, 4});
  Matrix rows = Matrix(DType::i32, 1, 3).integers({1, 0, 1});
  Matrix y(DType::f32, 3, 2);
  const GatherRows op{.x = x.view(), .rows = rows.view(), .y = y.view()};
  reference(op);
  expect_equal(y, Matrix(DType::f32, 3, 2).floats({3, 4, 1, 2, 3, 4}));
  rows.set_integer(0, 2, 2);
  expect_error<InvalidArgument>([&] { reference(op); }, "GatherRows: rows[2] is 2, x is f32 [2,2]");
  rows.set_integer(0, 2, -1);
  expect_error<InvalidArgument>([&] { reference(op); }, "GatherRows: rows[2] is -1");
}

TEST(GatherRows, RefusesWhatTheContractDoes) {
  Matrix x(DType::bf16, 3, 8), rows(DType::i32, 1, 2), y(DType::bf16, 2, 8);
  const GatherRows good{.x = x.view(), .rows = rows.view(), .y = y.view()};
  check(good);
  GatherRows op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.y.rows = 3;
  refuses("GatherRows: y is bf16 [3,8], wanted [2,8]");
  op.y.dtype = DType::f16;
  refuses("GatherRows: y is f16 [2,8], wanted bf16");
  op.rows.dtype = DType::u8;
  refuses("GatherRows: rows is u8 [1,2], wanted i32");
  op.y.data = op.x.data;
  refuses("GatherRows: y is the memory of x");
}

}  // namespace
}  // namespace ostro::ops
