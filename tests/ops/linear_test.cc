// Linear: the contract in ops/linear.h, for every backend of this build.
#include "ops/linear.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct Case {
  std::int64_t tokens, n, k;
  DType x, w, y;
  Activations activations = Activations::as_is;
};

// The dtypes that the contract allows, in every combination.
std::vector<Case> with_every_dtype(std::int64_t tokens, std::int64_t n, std::int64_t k) {
  std::vector<Case> cases;
  for (DType x : kFloats)
    for (DType w : {x, DType::f32})
      for (DType y : {x, DType::f32}) {
        if (x == DType::f32 && !cases.empty()) continue;
        cases.push_back({tokens, n, k, x, w, y});
      }
  for (DType x : kFloats) {
    const DType y = n % 2 ? x : DType::f32;
    for (Activations a : e4m3_activations())
      cases.push_back({tokens, n, k, x, DType::f8e4m3, y, a});
    cases.push_back({tokens, n, k, x, DType::i8, y});
    if (k % quant::kInt4Group == 0)
      for (Activations a : kActivations) cases.push_back({tokens, n, k, x, DType::u8, y, a});
  }
  return cases;
}

void compare_with_reference(const Case& c) {
  SCOPED_TRACE(text("tokens ", c.tokens, " n ", c.n, " k ", c.k, " x ", name(c.x), " w ", name(c.w),
                    " y ", name(c.y), " activations ", int(c.activations)));
  Matrix x = Matrix(c.x, c.tokens, c.k, 3).random(1);
  TestWeight w(c.w, c.n, c.k, c.n % 3, 2, 1 / std::sqrt(float(c.k) + 1));
  Matrix want(c.y, c.tokens, c.n, 5);
  reference({.x = x.view(), .w = w.weight(), .y = want.view(), .activations = c.activations});
  std::vector<double> x_norm, w_norm;
  for (std::int64_t t = 0; t < c.tokens; ++t) x_norm.push_back(x.norm(t));
  for (std::int64_t i = 0; i < c.n; ++i) w_norm.push_back(w.norm(i));
  on_every_target(
      [&](Backend& backend) {
        Matrix y(c.y, c.tokens, c.n, 5);
        backend.run(Linear{.x = x.view(),
                           .w = backend.place(w.weight()),
                           .y = y.view(),
                           .activations = c.activations});
        backend.wait();
        return std::vector<Matrix>{y};
      },
      [&](const std::vector<Matrix>& got) {
        expect_near(got[0], want, [&](std::int64_t t, std::int64_t i) {
          // Rounding adds at most a 16th to the norm of x; scaling rounds the sum twice.
          const double magnitude = 1.0625 * x_norm[std::size_t(t)] * w_norm[std::size_t(i)];
          return product_error(c.activations, c.k, magnitude) +
                 2 * rounding(DType::f32, want(t, i)) + two_roundings(c.y, want(t, i));
        });
      },
      takes_odd_rows(c.w, c.activations));
}

TEST(Linear, MatchesReference) {
  for (std::int64_t tokens : {0, 1, 3, 17})
    for (std::int64_t n : {1, 16, 31, 65})
      for (std::int64_t k : {0, 1, 7, 32, 33, 127})
        for (const Case& c : with_every_dtype(tokens, n, k)) compare_with_reference(c);
}

TEST(Linear, MatchesReferenceAroundEveryTileOfTokens) {
  for (std::int64_t tokens : {2, 4, 5, 6, 7, 8, 9, 12, 13, 15, 16, 31, 32, 33, 63, 64, 65, 97}) {
    for (const Case& c : with_every_dtype(tokens, 48, 96)) compare_with_reference(c);
    for (DType x : kFloats)
      for (Activations a : kActivations)
        compare_with_reference({tokens, 48, 128, x, DType::u8, x, a});
  }
}

TEST(Linear, MatchesReferenceForIntegerWeights) {
  for (DType x : kFloats) {
    for (std::int64_t tokens : {1, 2, 9, 49, 65, 241}) {
      for (std::int64_t k : {15, 33, 1025, 2100})
        compare_with_reference({tokens, 131, k, x, DType::i8, DType::f32});
      for (std::int64_t k : {128, 256, 1024, 1152})
        for (const auto& [n, y] : {std::pair{3, x}, {3, DType::f32}, {131, x}})
          for (Activations a : kActivations)
            compare_with_reference({tokens, n, k, x, DType::u8, y, a});
    }
    for (DType w : {DType::i8, DType::u8}) {
      compare_with_reference({1, 6144, 4096, x, w, x});
      for (Activations a : kActivations)
        if (w == DType::u8 || a == Activations::as_is)
          compare_with_reference({3, 40, 14336, x, w, DType::f32, a});
      compare_with_reference({0, 8, 128, x, w, x});
    }
  }
  compare_with_reference({2, 5, 0, DType::bf16, DType::u8, DType::f32});
}

// Every integer in every place of a group, times one: exact.
TEST(Linear, DecodesEveryInt4) {
  const std::int64_t n = 2 * quant::kInt4Group, k = 2 * quant::kInt4Group;
  Matrix w(DType::u8, n, k / 2), scale(DType::bf16, n, 2), want(DType::f32, 1, n);
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = float(i % 16) - 8;
    std::vector<float> row(std::size_t(k), 0.0f);
    row[std::size_t(i * 5 % k)] = value / 2;
    for (std::int64_t g = 0; g < 2; ++g) {
      scale.set(i, g, 0.5f);
      quant::int4_encode(row.data() + g * quant::kInt4Group, to_bf16(0.5f),
                         w.view().row<std::uint8_t>(i) + g * quant::kInt4GroupBytes);
    }
    want.set(0, i, value / 2 * float(i * 5 % k + 1));
  }
  for (DType dtype : {DType::f32, DType::f16}) {  // bf16 cannot hold every number up to 256
    Matrix x(dtype, 1, k);
    for (std::int64_t j = 0; j < k; ++j) x.set(0, j, float(j + 1));
    for (const Target& target : targets()) {
      SCOPED_TRACE(text(target.name(), ' ', name(dtype)));
      const auto backend = target.make();
      Matrix y(DType::f32, 1, n);
      backend->run(Linear{.x = x.view(),
                          .w = backend->place({.data = w.view(), .scale = scale.view()}),
                          .y = y.view()});
      backend->wait();
      expect_equal(y, want);
    }
  }
}

TEST(Linear, MatchesReferenceForE4m3Weights) {
  for (Activations a : e4m3_activations())
    for (DType x : kFloats) {
      for (std::int64_t tokens : {1, 2, 9, 49, 65, 241})
        for (std::int64_t k : {15, 31, 33, 1023, 1025, 2100})
          compare_with_reference({tokens, 131, k, x, DType::f8e4m3, DType::f32, a});
      compare_with_reference({1, 6144, 4096, x, DType::f8e4m3, x, a});
      compare_with_reference({0, 8, 8, x, DType::f8e4m3, x, a});
    }
}

// Every number of e4m3, subnormals too, times one.
TEST(Linear, DecodesEveryE4m3Number) {
  std::vector<float> numbers;
  for (unsigned bits = 0; bits < 256; ++bits)
    if (bits % 128 != 127) numbers.push_back(to_float(f8e4m3{std::uint8_t(bits)}));
  const auto n = std::int64_t(numbers.size());
  for (DType dtype : kFloats)
    for (std::int64_t tokens : {1, 5, 60})
      for (std::int64_t k : {1, 40}) {  // the number stands first, or in a whole vector
        SCOPED_TRACE(text(name(dtype), " tokens ", tokens, " k ", k));
        Matrix x(dtype, tokens, k), w(DType::f8e4m3, n, k), scale(DType::f32, 1, n);
        for (std::int64_t i = 0; i < n; ++i) {
          scale.set(0, i, 1);
          for (std::int64_t j = 0; j < k; ++j)
            w.set(i, j, j == i % k ? numbers[std::size_t(i)] : 0);
        }
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t j = 0; j < k; ++j) x.set(t, j, 1);
        Matrix want(DType::f32, tokens, n);
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t i = 0; i < n; ++i) want.set(t, i, numbers[std::size_t(i)]);
        for (const Target& target : targets()) {
          SCOPED_TRACE(target.name());
          const auto backend = target.make();
          Matrix y(DType::f32, tokens, n);
          backend->run(Linear{.x = x.view(),
                              .w = backend->place({.data = w.view(), .scale = scale.view()}),
                              .y = y.view(),
                              .activations = backend->e4m3_activations()});
          backend->wait();
          expect_near(y, want, [&](std::int64_t, std::int64_t i) {  // 1 may come back as 448 / 448
            return 4 * kF32 * std::abs(numbers[std::size_t(i)]);
          });
        }
      }
}

TEST(Linear, MatchesReferenceForManyTokens) {
  for (DType dtype : kFloats) {
    for (std::int64_t tokens : {49, 65, 239, 241, 500})
      for (std::int64_t n : {127, 129, 300})
        compare_with_reference({tokens, n, 40, dtype, dtype, dtype});
    compare_with_reference({65, 129, 1031, dtype, dtype, DType::f32});
    compare_with_reference({65, 129, 1031, dtype, DType::f32, dtype});
  }
}

TEST(Linear, MatchesReferenceAroundEveryTileOfOutputs) {
  for (std::int64_t n : {0, 2, 8, 15, 17, 32, 33, 47, 63, 64, 95, 97, 127, 128, 129})
    for (std::int64_t tokens : {1, 9})
      for (DType dtype : kFloats) compare_with_reference({tokens, n, 40, dtype, dtype, dtype});
}

TEST(Linear, MatchesReferenceAroundEveryBlockOfK) {
  for (std::int64_t k : {2, 15, 16, 17, 31, 63, 64, 65, 255, 256, 257, 511, 513, 1023, 1024, 1025})
    for (std::int64_t tokens : {1, 9})
      for (DType dtype : kFloats) compare_with_reference({tokens, 24, k, dtype, dtype, DType::f32});
}

// [q | k | v] of Mixtral 8x7B, and a slice of its output projection and vocabulary.
TEST(Linear, MatchesReferenceAtMixtralsSizes) {
  compare_with_reference({1, 6144, 4096, DType::bf16, DType::bf16, DType::bf16});
  compare_with_reference({19, 256, 4096, DType::bf16, DType::bf16, DType::bf16});
  compare_with_reference({2, 1000, 4096, DType::f32, DType::f32, DType::f32});
  compare_with_reference({5, 512, 4096, DType::f16, DType::f16, DType::f32});
}

TEST(Linear, TokensDoNotDependOnTheBatch) {
  for (const auto& [n, k] : {std::pair{64, 128}, {97, 1031}, {97, 1152}, {32, 4096}})
    for (DType w_type : kWeightTypes) {
      SCOPED_TRACE(text("n ", n, " k ", k, ' ', name(w_type)));
      if (w_type == DType::u8 && k % quant::kInt4Group != 0) continue;
      const bool e4m3 = w_type == DType::f8e4m3;
      Matrix x = Matrix(is_float(w_type) ? w_type : DType::bf16, kBatchRows, k).random(1);
      TestWeight w(w_type, n, k, 0, 2, 0.1f);
      for (const Target& target : targets()) {
        SCOPED_TRACE(target.name());
        const auto backend = target.make();
        const quant::Weight placed = backend->place(w.weight());
        const auto run = [&](Range rows) {
          Matrix y(DType::f32, rows.size(), n);
          backend->run(
              Linear{.x = x.view().rows_of(rows),
                     .w = placed,
                     .y = y.view(),
                     .activations = e4m3 ? backend->e4m3_activations() : Activations::as_is});
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

// An output's sum does not depend on n either: a rank that holds a slice of the rows of w computes
// what the whole would.
TEST(Linear, OutputsDoNotDependOnTheSlice) {
  for (DType dtype : kWeightTypes) {
    const bool e4m3 = dtype == DType::f8e4m3;
    const std::int64_t k = dtype == DType::u8 ? 384 : 300;
    Matrix x = Matrix(is_float(dtype) ? dtype : DType::bf16, 5, k).random(1);
    TestWeight w(dtype, 130, k, 0, 2, 1);
    for (const Target& target : targets()) {
      SCOPED_TRACE(text(target.name(), ' ', name(dtype)));
      const auto backend = target.make();
      const auto run = [&](Range outputs) {
        Matrix y(DType::f32, 5, outputs.size());
        backend->run(
            Linear{.x = x.view(),
                   .w = backend->place(w.rows(outputs)),
                   .y = y.view(),
                   .activations = e4m3 ? backend->e4m3_activations() : Activations::as_is});
        backend->wait();
        return y;
      };
      const Matrix whole = run({0, 130});
      for (const Range outputs : {Range{0, 1}, {0, 65}, {65, 130}, {7, 24}}) {
        const Matrix part = run(outputs);
        for (std::int64_t t = 0; t < 5; ++t)
          for (std::int64_t i = 0; i < outputs.size(); ++i)
            ASSERT_EQ(part(t, i), whole(t, outputs.begin + i)) << t << ' ' << outputs.begin + i;
      }
    }
  }
}

TEST(Linear, OfSmallIntegersIsExact) {
  Matrix x = Matrix(DType::f32, 2, 3).floats({1, 2, 3, 4, 5, 6});
  Matrix w = Matrix(DType::f32, 2, 3).floats({1, 0, -1, 2, 1, 0});
  Matrix y(DType::f32, 2, 2);
  reference({.x = x.view(), .w = w.weight(), .y = y.view()});
  expect_equal(y, Matrix(DType::f32, 2, 2).floats({-2, 4, -2, 13}));
}

TEST(Linear, RefusesWhatTheContractDoes) {
  Matrix x(DType::bf16, 3, 8), w(DType::bf16, 5, 8), y(DType::bf16, 3, 5);
  const Linear good{.x = x.view(), .w = w.weight(), .y = y.view()};
  check(good);
  Linear op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.w.data.cols = 7;
  refuses("Linear: w is bf16 [5,7], wanted [5,8]");
  op.w.data.dtype = DType::f16;
  refuses("Linear: w is f16 [5,8], wanted bf16 or f32");
  op.w.scale = w.view();
  refuses("Linear: w is bf16 [5,8] and has a scale bf16 [5,8]");
  op.y.cols = 6;
  refuses("Linear: y is bf16 [3,6], wanted [3,5]");
  op.y.dtype = DType::f16;
  refuses("Linear: y is f16 [3,5], wanted bf16 or f32");
  op.y.data = op.x.data;
  refuses("Linear: y is the memory of x");
  op.w.data.device = Device::cuda;
  refuses("Linear: w is on cuda, wanted cpu");
  op.x.dtype = DType::i32;
  expect_error<Unsupported>([&] { check(op); }, "Linear: x has no i32 version");
  op = good;
  op.w.data.dtype = DType::i32;
  expect_error<Unsupported>([&] { check(op); },
                            "Linear: w has no i32 version; it has: f32 f16 bf16");
  op = good;
  op.w.data.dtype = DType::i8;
  refuses("Linear: w is i8 [5,8] and has a scale f32 [0,0], wanted f32 [1,5]");
  op.w.data.dtype = DType::u8;
  refuses("Linear: w is int4 and has 8 columns, wanted a multiple of 128");
  Matrix x4(DType::bf16, 3, 256), w4(DType::u8, 5, 128), scale4(DType::bf16, 5, 2);
  const auto int4 = [&] {
    op.x = x4.view();
    op.w = {.data = w4.view(), .scale = scale4.view()};
  };
  int4();
  check(op);
  op.w.data.cols = 64;
  refuses("Linear: w is u8 [5,64], wanted [5,128]");
  int4();
  op.w.scale.cols = 1;
  refuses("Linear: scale is bf16 [5,1], wanted [5,2]");
  int4();
  op.w.scale.dtype = DType::f16;
  refuses("Linear: w is u8 [5,128] and has a scale f16 [5,2], wanted bf16");
  int4();
  op.activations = Activations::e4m3_per_token;
  check(op);
  op = good;
  op.activations = Activations::e4m3_per_token;
  refuses("Linear: activations are rounded to f8e4m3, but w is bf16 [5,8]");
  Matrix scale(DType::f32, 1, 5);
  op.w.data.dtype = DType::f8e4m3;
  op.w.scale = scale.view();
  op.activations = Activations::e4m3_per_token;
  check(op);
  op.w.scale.cols = 4;
  refuses("Linear: w is f8e4m3 [5,8] and has a scale f32 [1,4], wanted f32 [1,5]");
  op.w.data.dtype = DType::f8e4m3;
  refuses("Linear: w is f8e4m3 [5,8] and has a scale f32 [0,0], wanted f32 [1,5]");
}

// Rows of 448 and 44.8 have the scales 1 and 0.1; 17 lies between the e4m3 numbers 16 and 18.
TEST(Linear, OfE4m3WeightsIsScaledAndMayRoundItsInput) {
  Matrix x = Matrix(DType::f32, 2, 2).floats({448, 17, 44.8f, 17});
  Matrix w = Matrix(DType::f8e4m3, 2, 2).floats({1, 1, 0, 2});
  Matrix scale = Matrix(DType::f32, 1, 2).floats({0.5f, 3});
  const quant::Weight weight{.data = w.view(), .scale = scale.view()};
  Matrix y(DType::f32, 2, 2);
  reference({.x = x.view(), .w = weight, .y = y.view()});
  expect_equal(y, Matrix(DType::f32, 2, 2).floats({232.5f, 102, 30.9f, 102}));
  reference(
      {.x = x.view(), .w = weight, .y = y.view(), .activations = Activations::e4m3_per_token});
  // 17 is 16, and 17 / 0.1 is 176.
  const Matrix want = Matrix(DType::f32, 2, 2).floats({232, 96, 31.2f, 105.6f});
  expect_near(y, want, [&](std::int64_t t, std::int64_t i) { return 4 * kF32 * want(t, i); });
}

}  // namespace
}  // namespace ostro::ops
