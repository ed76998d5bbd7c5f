// Route: the contract in ops/moe.h, for every backend of this build.
#include "ops/moe.h"

#include <algorithm>
#include <set>

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct RouteCase {
  std::int64_t tokens, hidden, experts, top_k;
  DType x, router;
  bool renormalize;
};

constexpr std::int32_t kCounted = 5;  // of each expert, before the op

// softmax(x[t,:] . router[e,:]) over e, in f64.
std::vector<double> probabilities(const Matrix& x, const Matrix& router, std::int64_t t) {
  std::vector<double> p;
  double sum = 0;
  for (std::int64_t e = 0; e < router.rows(); ++e) {
    double z = 0;
    for (std::int64_t i = 0; i < x.cols(); ++i) z += double(x(t, i)) * router(e, i);
    p.push_back(std::exp(z));
    sum += p.back();
  }
  for (double& value : p) value /= sum;
  return p;
}

// Two experts closer than the rounding of their logits may stand either way round, so the choice is
// judged by its probabilities, not by the indices. A logit off by d changes p by less than
// 2 d p, and 16 roundings cover exp, the sum over experts and the division.
void expect_route(const RouteCase& c, const Matrix& x, const Matrix& router, const Matrix& experts,
                  const Matrix& weights, const Matrix& counts) {
  std::vector<std::int32_t> chosen(std::size_t(c.experts), kCounted);
  for (std::int64_t t = 0; t < c.tokens; ++t)
    for (std::int64_t j = 0; j < c.top_k; ++j) ++chosen.at(std::size_t(experts.integer(t, j)));
  for (std::int64_t e = 0; e < c.experts; ++e)
    ASSERT_EQ(counts.integer(0, e), chosen[std::size_t(e)]) << "expert " << e;
  double router_norm = 0;
  for (std::int64_t e = 0; e < c.experts; ++e) router_norm = std::max(router_norm, router.norm(e));
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const double error =
        2 * sum_error(c.hidden, x.norm(t) * router_norm) + sum_error(c.experts, 1) + 16 * kF32;
    const std::vector<double> p = probabilities(x, router, t);
    std::vector<double> falling = p;
    std::sort(falling.rbegin(), falling.rend());
    double sum = 0;
    for (std::int64_t j = 0; j < c.top_k; ++j) sum += falling[std::size_t(j)];
    std::set<std::int32_t> seen;
    for (std::int64_t j = 0; j < c.top_k; ++j) {
      const std::int32_t e = experts.integer(t, j);
      ASSERT_TRUE(0 <= e && e < c.experts && seen.insert(e).second)
          << "token " << t << " choice " << j << " is expert " << e;
      const double chosen = p[std::size_t(e)];
      ASSERT_NEAR(chosen, falling[std::size_t(j)], 2 * error * chosen)
          << "token " << t << " choice " << j << " is expert " << e;
      const double want = c.renormalize ? chosen / sum : chosen;
      ASSERT_NEAR(weights(t, j), want, 2 * error * want) << "token " << t << " choice " << j;
    }
  }
}

void compare_route(const RouteCase& c) {
  SCOPED_TRACE(text("tokens ", c.tokens, " hidden ", c.hidden, " experts ", c.experts, " top_k ",
                    c.top_k, ' ', name(c.x), ' ', name(c.router), " renormalize ", c.renormalize));
  Matrix x = Matrix(c.x, c.tokens, c.hidden, 3).random(1);
  Matrix router = Matrix(c.router, c.experts, c.hidden).random(2, 2 / std::sqrt(float(c.hidden)));
  const auto op = [&](const quant::Weight& r, Matrix& experts, Matrix& weights, Matrix& counts) {
    return Route{.x = x.view(),
                 .router = r,
                 .experts = experts.view(),
                 .weights = weights.view(),
                 .renormalize = c.renormalize,
                 .counts = counts.view()};
  };
  Matrix counted(DType::i32, 1, c.experts);
  for (std::int64_t e = 0; e < c.experts; ++e) counted.set_integer(0, e, kCounted);
  const Matrix no_experts(DType::i32, c.tokens, c.top_k, 2),
      no_weights(DType::f32, c.tokens, c.top_k, 1);
  Matrix experts = no_experts, weights = no_weights, counts = counted;
  reference(op(router.weight(), experts, weights, counts));
  expect_route(c, x, router, experts, weights, counts);
  on_every_target(
      [&](Backend& backend) {
        Matrix e = no_experts, w = no_weights, n = counted;
        backend.run(op(backend.place(router.weight()), e, w, n));
        backend.wait();
        return std::vector<Matrix>{e, w, n};
      },
      [&](const std::vector<Matrix>& got) { expect_route(c, x, router, got[0], got[1], got[2]); });
}

TEST(Route, MatchesReference) {
  for (std::int64_t tokens : {0, 1, 3, 17})
    for (std::int64_t hidden : {1, 7, 16, 65, 300})
      for (const auto& [experts, top_k] :
           {std::pair{1, 1}, {2, 1}, {3, 3}, {7, 2}, {8, 2}, {9, 4}, {17, 6}, {64, 8}})
        for (DType x : kFloats)
          compare_route({tokens, hidden, experts, top_k, x, x, (tokens + top_k) % 2 == 0});
}

TEST(Route, MatchesReferenceAtMixtralsSizeAndAtTheLimit) {
  for (DType x : kFloats)
    for (DType router : {x, DType::f32}) {
      compare_route({7, 4096, 8, 2, x, router, true});
      compare_route({130, 64, 8, 2, x, router, true});
    }
  compare_route({3, 32, 1024, 1024, DType::f32, DType::f32, true});
  compare_route({3, 32, 1000, 5, DType::bf16, DType::f32, false});
}

// Logits 0, ln 2, ln 5: p = 1/8, 2/8, 5/8.
TEST(Route, OfKnownProbabilities) {
  Matrix x = Matrix(DType::f32, 1, 1).floats({1});
  Matrix router = Matrix(DType::f32, 3, 1).floats({0, std::log(2.0f), std::log(5.0f)});
  Matrix experts(DType::i32, 1, 2), weights(DType::f32, 1, 2);
  Route op{.x = x.view(),
           .router = router.weight(),
           .experts = experts.view(),
           .weights = weights.view(),
           .renormalize = false};
  reference(op);
  EXPECT_EQ(experts.integer(0, 0), 2);
  EXPECT_EQ(experts.integer(0, 1), 1);
  EXPECT_FLOAT_EQ(weights(0, 0), 5.0f / 8);
  EXPECT_FLOAT_EQ(weights(0, 1), 2.0f / 8);
  op.renormalize = true;
  reference(op);
  EXPECT_FLOAT_EQ(weights(0, 0), 5.0f / 7);
  EXPECT_FLOAT_EQ(weights(0, 1), 2.0f / 7);
}

// Runs Route on a reference and on every target; `expect` sees experts and weights.
template <class Expect>
void route_everywhere(Matrix& x, Matrix& router, std::int64_t top_k, Expect&& expect) {
  const auto run = [&](auto&& execute, const quant::Weight& placed) {
    Matrix experts(DType::i32, x.rows(), top_k), weights(DType::f32, x.rows(), top_k);
    execute(Route{.x = x.view(),
                  .router = placed,
                  .experts = experts.view(),
                  .weights = weights.view(),
                  .renormalize = true});
    return std::vector<Matrix>{experts, weights};
  };
  expect(run([](const Route& op) { reference(op); }, router.weight()));
  on_every_target(
      [&](Backend& backend) {
        return run(
            [&](const Route& op) {
              backend.run(op);
              backend.wait();
            },
            backend.place(router.weight()));
      },
      expect);
}

TEST(Route, GivesTiesToTheLowerIndex) {
  for (std::int64_t experts : {2, 7, 8, 17, 64}) {
    SCOPED_TRACE(text("experts ", experts));
    const std::int64_t top_k = std::min<std::int64_t>(experts, 5);
    Matrix x = Matrix(DType::bf16, 3, 40).random(1);
    Matrix router(DType::bf16, experts, 40);
    for (std::int64_t e = 0; e < experts; ++e)
      for (std::int64_t i = 0; i < 40; ++i) router.set(e, i, noise(2, std::uint64_t(i)));
    route_everywhere(x, router, top_k, [&](const std::vector<Matrix>& got) {
      for (std::int64_t t = 0; t < 3; ++t)
        for (std::int64_t j = 0; j < top_k; ++j) {
          ASSERT_EQ(got[0].integer(t, j), j);
          ASSERT_NEAR(got[1](t, j), 1.0 / double(top_k), 8 * kF32);
        }
    });
  }
}

// exp would overflow at 88 and underflow at -104; the softmax may not.
TEST(Route, HasNoLimitOnLogits) {
  Matrix x = Matrix(DType::f32, 2, 1).floats({1, -1});
  Matrix router = Matrix(DType::f32, 4, 1).floats({-3000, 2000, 2000, 1999});
  route_everywhere(x, router, 2, [&](const std::vector<Matrix>& got) {
    EXPECT_EQ(got[0].integer(0, 0), 1);
    EXPECT_EQ(got[0].integer(0, 1), 2);
    EXPECT_NEAR(got[1](0, 0), 0.5, 8 * kF32);
    EXPECT_EQ(got[0].integer(1, 0), 0);
    EXPECT_EQ(got[1](1, 0), 1);
    EXPECT_EQ(got[1](1, 1), 0);
  });
}

TEST(Route, ChoosesDistinctExpertsEvenForNan) {
  for (std::int64_t experts : {4, 8, 17}) {
    Matrix x = Matrix(DType::f32, 2, 3).floats({0, std::nanf(""), 1, 1, 2, 3});
    Matrix router = Matrix(DType::f32, experts, 3).random(1);
    route_everywhere(x, router, 3, [&](const std::vector<Matrix>& got) {
      for (std::int64_t t = 0; t < 2; ++t) {
        std::set<std::int32_t> seen;
        for (std::int64_t j = 0; j < 3; ++j) {
          const std::int32_t e = got[0].integer(t, j);
          ASSERT_TRUE(0 <= e && e < experts && seen.insert(e).second) << t << ' ' << j << ": " << e;
        }
      }
    });
  }
}

TEST(Route, TokensDoNotDependOnTheBatch) {
  for (DType dtype : kFloats) {
    Matrix x = Matrix(dtype, kBatchRows, 1031).random(1);
    Matrix router = Matrix(dtype, 8, 1031).random(2, 0.1f);
    for (const Target& target : targets()) {
      SCOPED_TRACE(text(target.name(), ' ', name(dtype)));
      const auto backend = target.make();
      const quant::Weight placed = backend->place(router.weight());
      const auto run = [&](Range rows) {
        std::vector<Matrix> out{{DType::i32, rows.size(), 2}, {DType::f32, rows.size(), 2}};
        backend->run(Route{.x = x.view().rows_of(rows),
                           .router = placed,
                           .experts = out[0].view(),
                           .weights = out[1].view(),
                           .renormalize = true});
        backend->wait();
        return out;
      };
      const std::vector<Matrix> whole = run({0, kBatchRows});
      for (std::int64_t rows : kBatches)
        for (std::int64_t first : {std::int64_t{0}, kBatchRows - rows}) {
          const std::vector<Matrix> part = run({first, first + rows});
          for (std::size_t i : {0, 1}) expect_same_rows(part[i], whole[i], first);
        }
    }
  }
}

TEST(Route, RefusesWhatTheContractDoes) {
  Matrix x(DType::bf16, 3, 8), router(DType::f32, 4, 8), experts(DType::i32, 3, 2),
      weights(DType::f32, 3, 2);
  const Route good{.x = x.view(),
                   .router = router.weight(),
                   .experts = experts.view(),
                   .weights = weights.view()};
  check(good);
  Route op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.router.data.cols = 7;
  refuses("Route: router is f32 [4,7], wanted [4,8]");
  op.router.data.dtype = DType::f16;
  refuses("Route: router is f16 [4,8], wanted bf16 or f32");
  op.experts.dtype = DType::f32;
  refuses("Route: experts is f32 [3,2], wanted i32");
  op.weights.cols = 3;
  refuses("Route: weights is f32 [3,3], wanted [3,2]");
  op.weights.dtype = DType::bf16;
  refuses("Route: weights is bf16 [3,2], wanted f32");
  Matrix counts(DType::i32, 1, 3);
  op.counts = counts.view();
  refuses("Route: counts is i32 [1,3], wanted [1,4]");
  Matrix sums(DType::f32, 1, 4);
  op.counts = sums.view();
  refuses("Route: counts is f32 [1,4], wanted i32");
  op.router.data.rows = 1;
  refuses("Route: top_k is 2 of 1 experts, wanted 1 <= top_k <= experts <= 1024");
  op.router.data.rows = 1025;
  refuses("Route: top_k is 2 of 1025 experts");
  op.experts.cols = op.weights.cols = 0;
  refuses("Route: top_k is 0 of 4 experts");
  op.weights.data = op.experts.data;
  refuses("Route: weights is the memory of experts");
}

TEST(Route, PaddingHasNoExperts) {
  for (DType dtype : kFloats)
    for (std::int32_t live : {0, 1, 3, 5}) {
      Matrix x = Matrix(dtype, 5, 40).random(1), router = Matrix(dtype, 8, 40).random(2);
      Matrix count = Matrix(DType::i32, 1, 1).integers({live});
      const auto run = [&](Backend* backend, const View& live_rows) {
        Matrix experts(DType::i32, 5, 2), weights(DType::f32, 5, 2);
        const Route op{.x = x.view(),
                       .router = backend ? backend->place(router.weight()) : router.weight(),
                       .experts = experts.view(),
                       .weights = weights.view(),
                       .renormalize = true,
                       .live = live_rows};
        if (!backend) {
          reference(op);
        } else {
          backend->run(op);
          backend->wait();
        }
        return std::vector<Matrix>{experts, weights};
      };
      const auto expect = [&](const std::vector<Matrix>& got, const std::vector<Matrix>& whole) {
        for (std::int64_t t = 0; t < 5; ++t)
          for (std::int64_t j = 0; j < 2; ++j) {
            ASSERT_EQ(got[0].integer(t, j), t < live ? whole[0].integer(t, j) : -1) << t;
            ASSERT_EQ(got[1](t, j), t < live ? whole[1](t, j) : 0.0f) << t;
          }
      };
      expect(run(nullptr, count.view()), run(nullptr, {}));
      on_every_target(
          [&](Backend& backend) {
            std::vector<Matrix> all = run(&backend, count.view());
            for (Matrix& m : run(&backend, {})) all.push_back(std::move(m));
            return all;
          },
          [&](const std::vector<Matrix>& got) {
            expect({got[0], got[1]}, {got[2], got[3]});
          });
    }
}

}  // namespace
}  // namespace ostro::ops
