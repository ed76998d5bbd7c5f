// Draw: the contract in ops/draw.h, for every backend of this build.
#include "ops/draw.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

Matrix table(DType dtype) {
  Matrix m(dtype, 1, kQuantiles);
  if (is_float(dtype)) {
    const std::vector<float> values = normal_quantiles(1);
    for (std::int64_t i = 0; i < kQuantiles; ++i) m.set(0, i, values[std::size_t(i)]);
    return m;
  }
  return m.random(3);
}

TEST(Draw, MatchesReference) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::u8}) {
    Matrix quantiles = table(dtype);
    for (std::int64_t rows : {0, 1, 3})
      for (std::int64_t cols : {0, 1, 2, 3, 4, 5, 255, 4095, 4096, 4097, 14336})
        for (std::int64_t first_col : {0, 1, 7}) {
          SCOPED_TRACE(text(name(dtype), ' ', rows, " x ", cols, " from ", first_col));
          const auto op = [&](Matrix& y) {
            return Draw{.quantiles = quantiles.view(),
                        .y = y.view(),
                        .key = draw_key(5, "layers.0.o"),
                        .first_row = 1000000,
                        .first_col = first_col,
                        .matrix_cols = 20001};
          };
          Matrix want(dtype, rows, cols, 2);
          reference(op(want));
          on_every_target(
              [&](Backend& backend) {
                Matrix y(dtype, rows, cols, 2);
                backend.run(op(y));
                backend.wait();
                return std::vector<Matrix>{y};
              },
              [&](const std::vector<Matrix>& got) {
                for (std::int64_t r = 0; r < rows; ++r)
                  ASSERT_EQ(got[0].row_bits(r) == want.row_bits(r), true) << r;
              });
        }
  }
}

// The contract's formula, worked out once more in the test.
TEST(Draw, ReferenceFollowsTheFormula) {
  Matrix quantiles = table(DType::f32);
  Matrix y(DType::f32, 2, 3);
  reference(Draw{.quantiles = quantiles.view(),
                 .y = y.view(),
                 .key = 42,
                 .first_row = 1,
                 .first_col = 2,
                 .matrix_cols = 5});
  for (std::uint64_t r = 0; r < 2; ++r)
    for (std::uint64_t c = 0; c < 3; ++c) {
      const std::uint64_t i = (1 + r) * 5 + 2 + c;
      std::uint64_t z = 42 + i / 4 * 0x9e3779b97f4a7c15u;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      EXPECT_EQ(y(std::int64_t(r), std::int64_t(c)),
                quantiles(0, std::int64_t((z >> (16 * (i % 4))) & 0xffff)));
    }
}

TEST(Draw, RefusesWhatTheContractDoes) {
  Matrix quantiles(DType::bf16, 1, kQuantiles), y(DType::bf16, 2, 8);
  const Draw good{.quantiles = quantiles.view(),
                  .y = y.view(),
                  .key = 0,
                  .first_row = 0,
                  .first_col = 2,
                  .matrix_cols = 10};
  check(good);
  Draw op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.quantiles.cols = 7;
  refuses("Draw: quantiles is bf16 [1,7], wanted [1,65536]");
  op.y.dtype = DType::f16;
  refuses("Draw: y is f16 [2,8], wanted bf16");
  op.first_col = 3;
  refuses("Draw: y is bf16 [2,8] from row 0 and column 3 of a matrix of 10 columns");
  op.first_row = -1;
  refuses("Draw: y is bf16 [2,8] from row -1");
  op.y.data = quantiles.view().data;
  refuses("Draw: y is the memory of quantiles");
}

}  // namespace
}  // namespace ostro::ops
