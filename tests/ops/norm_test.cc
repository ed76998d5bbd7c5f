// AddRmsNorm: the contract in ops/norm.h, for every backend of this build.
#include "ops/norm.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

constexpr float kEps = 1e-5f;

// A sum of `hidden` squares is off by sum_error, relatively, and the square root halves that. Eight
// roundings cover the division, eps, the root, its reciprocal (by Newton steps, perhaps) and the
// two products.
double relative_error(std::int64_t hidden) { return sum_error(hidden, 1) / 2 + 8 * kF32; }

struct Case {
  std::int64_t tokens, hidden;
  bool add;
  DType weight, y;
};

void compare_with_reference(const Case& c) {
  SCOPED_TRACE(text("tokens ", c.tokens, " hidden ", c.hidden, " add ", c.add, " weight ",
                    name(c.weight), " y ", name(c.y)));
  Matrix x = Matrix(DType::f32, c.tokens, c.hidden, 5).random(1);
  Matrix weight = Matrix(c.weight, 1, c.hidden).random(2);
  const Matrix start = Matrix(DType::f32, c.tokens, c.hidden, 3).random(3);
  const auto op = [&](Matrix& residual, Matrix& y) {
    return AddRmsNorm{.x = c.add ? x.view() : View{},
                      .residual = residual.view(),
                      .weight = weight.view(),
                      .y = y.view(),
                      .eps = kEps};
  };
  Matrix residual = start, y(c.y, c.tokens, c.hidden, 7);
  reference(op(residual, y));
  on_every_target(
      [&](Backend& backend) {
        Matrix r = start, out(c.y, c.tokens, c.hidden, 7);
        backend.run(op(r, out));
        backend.wait();
        return std::vector<Matrix>{r, out};
      },
      [&](const std::vector<Matrix>& got) {
        expect_equal(got[0], residual);  // one f32 addition: exact
        expect_near(got[1], y, [&](std::int64_t t, std::int64_t i) {
          return relative_error(c.hidden) * std::abs(y(t, i)) + two_roundings(c.y, y(t, i));
        });
      });
}

TEST(AddRmsNorm, MatchesReference) {
  for (std::int64_t tokens : {0, 1, 2, 3, 17})
    for (std::int64_t hidden : {1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 1031})
      for (bool add : {false, true})
        for (DType y : kFloats) compare_with_reference({tokens, hidden, add, DType::f32, y});
}

TEST(AddRmsNorm, MatchesReferenceForEveryWeightTypeAtMixtralsWidth) {
  for (DType weight : kFloats)
    for (DType y : kFloats) compare_with_reference({5, 4096, true, weight, y});
}

TEST(AddRmsNorm, AddsWithoutNormalising) {
  Matrix x = Matrix(DType::f32, 3, 33, 1).random(1);
  const Matrix start = Matrix(DType::f32, 3, 33, 2).random(2);
  on_every_target(
      [&](Backend& backend) {
        Matrix r = start;
        backend.run(
            AddRmsNorm{.x = x.view(), .residual = r.view(), .weight = {}, .y = {}, .eps = kEps});
        backend.wait();
        return std::vector<Matrix>{r};
      },
      [&](const std::vector<Matrix>& got) {
        for (std::int64_t t = 0; t < 3; ++t)
          for (std::int64_t i = 0; i < 33; ++i)
            ASSERT_EQ(got[0](t, i), start(t, i) + x(t, i)) << t << ' ' << i;
      });
}

TEST(AddRmsNorm, TokensDoNotDependOnTheBatch) {
  for (std::int64_t hidden : {64, 1031, 4096}) {
    SCOPED_TRACE(text("hidden ", hidden));
    Matrix x = Matrix(DType::f32, kBatchRows, hidden).random(1);
    Matrix weight = Matrix(DType::bf16, 1, hidden).random(2);
    const Matrix start = Matrix(DType::f32, kBatchRows, hidden).random(3);
    for (const Target& target : targets()) {
      SCOPED_TRACE(target.name());
      const auto backend = target.make();
      const auto run = [&](Range rows) {
        Matrix residual = start, y(DType::f32, rows.size(), hidden);
        backend->run(AddRmsNorm{.x = x.view().rows_of(rows),
                                .residual = residual.view().rows_of(rows),
                                .weight = weight.view(),
                                .y = y.view(),
                                .eps = kEps});
        backend->wait();
        return y;
      };
      const Matrix whole = run({0, kBatchRows});
      for (std::int64_t rows : kBatches)
        for (std::int64_t first : {std::int64_t{0}, kBatchRows - rows})
          expect_same_rows(run({first, first + rows}), whole, first);
    }
  }
}

TEST(AddRmsNorm, OfThreeAndFour) {
  // residual = 1 + 2, 1 + 3; the mean square of 3, 4 is 12.5; y = {2, 1} * {3, 4} / sqrt(12.5 +
  // eps).
  Matrix x = Matrix(DType::f32, 1, 2).floats({1, 1});
  Matrix residual = Matrix(DType::f32, 1, 2).floats({2, 3});
  Matrix weight = Matrix(DType::f32, 1, 2).floats({2, 1});
  Matrix y(DType::f32, 1, 2);
  reference({.x = x.view(),
             .residual = residual.view(),
             .weight = weight.view(),
             .y = y.view(),
             .eps = 3.5f});
  EXPECT_EQ(residual(0, 0), 3);
  EXPECT_EQ(residual(0, 1), 4);
  EXPECT_FLOAT_EQ(y(0, 0), 1.5f);  // sqrt(12.5 + 3.5) = 4
  EXPECT_FLOAT_EQ(y(0, 1), 1.0f);
}

class AddRmsNormContract : public ::testing::Test {
 protected:
  Matrix x_{DType::f32, 2, 8}, residual_{DType::f32, 2, 8}, weight_{DType::bf16, 1, 8},
      y_{DType::bf16, 2, 8};
  AddRmsNorm op_{.x = x_.view(),
                 .residual = residual_.view(),
                 .weight = weight_.view(),
                 .y = y_.view(),
                 .eps = kEps};

  void refuses(const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op_); }, wanted);
  }
};

TEST_F(AddRmsNormContract, Holds) {
  check(op_);
  op_.eps = 0;
  op_.y = {};
  op_.weight = {};
  check(op_);  // nothing is normalised: no weight, any eps
}

TEST_F(AddRmsNormContract, HoldsForNoTokensWithoutMemory) {
  op_.x = op_.residual = op_.y = View{.rows = 0, .cols = 8, .row_stride = 8};
  check(op_);
  reference(op_);
}

TEST_F(AddRmsNormContract, EpsIsPositive) {
  op_.eps = 0;
  refuses("AddRmsNorm: eps is 0, wanted > 0");
  op_.eps = std::nanf("");
  refuses("AddRmsNorm: eps is nan, wanted > 0");
}

TEST_F(AddRmsNormContract, ShapesAgree) {
  op_.weight.cols = 7;
  refuses("AddRmsNorm: weight is bf16 [1,7], wanted [1,8]");
  op_.weight = weight_.view();
  op_.y.rows = 1;
  refuses("AddRmsNorm: y is bf16 [1,8], wanted [2,8]");
  op_.y = y_.view();
  op_.x.cols = 9;
  refuses("AddRmsNorm: x is f32 [2,9], wanted [2,8]");
}

TEST_F(AddRmsNormContract, NormalisingNeedsAWeight) {
  op_.weight = {};
  refuses("AddRmsNorm: weight is f32 [0,0], wanted [1,8]");
}

TEST_F(AddRmsNormContract, RoundingNeedsAnOutput) {
  op_.activations = Activations::e4m3_per_token;
  check(op_);
  op_.y = {};
  refuses("AddRmsNorm: activations to round, but no y");
}

TEST_F(AddRmsNormContract, OnlyProductsThatRoundNeedNoOutput) {
  op_.for_products = true;
  refuses("AddRmsNorm: y is for products alone, which do not round it");
}

TEST_F(AddRmsNormContract, RowsDoNotOverlap) {
  op_.y.row_stride = 7;
  refuses("AddRmsNorm: y is bf16 [2,8] with a row every 7 elements");
}

TEST_F(AddRmsNormContract, TheResidualStreamIsF32) {
  op_.residual.dtype = DType::f16;
  refuses("AddRmsNorm: residual is f16 [2,8], wanted f32");
  op_.residual = residual_.view();
  op_.x.dtype = DType::bf16;
  refuses("AddRmsNorm: x is bf16 [2,8], wanted f32");
}

TEST_F(AddRmsNormContract, NamesTheTypesItHas) {
  op_.weight.dtype = DType::i8;
  expect_error<Unsupported>([&] { check(op_); },
                            "AddRmsNorm: weight has no i8 version; it has: f32 f16 bf16");
  op_.weight = weight_.view();
  op_.y.dtype = DType::i32;
  expect_error<Unsupported>([&] { check(op_); },
                            "AddRmsNorm: y has no i32 version; it has: f32 f16 bf16");
}

TEST_F(AddRmsNormContract, MemoryAndDevices) {
  op_.y = op_.x;
  refuses("AddRmsNorm: y is the memory of x");
  op_.y = op_.residual;
  refuses("AddRmsNorm: y is the memory of residual");
  op_.y = y_.view();
  op_.residual.data = nullptr;
  refuses("AddRmsNorm: residual is f32 [2,8] without memory");
  op_.residual = residual_.view();
  op_.y.device = Device::cuda;
  refuses("AddRmsNorm: y is on cuda, wanted cpu");
}

TEST_F(AddRmsNormContract, BackendsCheckIt) {
  op_.eps = -1;
  for (const Target& target : targets())
    expect_error<InvalidArgument>([&] { target.make()->run(op_); }, "eps is -1");
}

}  // namespace
}  // namespace ostro::ops
