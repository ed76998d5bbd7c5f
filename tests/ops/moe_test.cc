// ExpertMlp: the contract in ops/moe.h, for every backend of this build.
#include "ops/moe.h"

#include <algorithm>

#include "ops/host_matrix.h"
#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct MlpCase {
  std::int64_t tokens, hidden, inter;
  std::int64_t experts, top_k;  // of the model; top_k 0: dense
  Range local;                  // the experts of this rank
  DType x, weight;
  Activations activations = Activations::as_is;
};

// The operands of a case.
class Mlp {
 public:
  explicit Mlp(const MlpCase& c)
      : c_(c),
        x_(Matrix(c.x, c.tokens, c.hidden, 3).random(1)),
        experts_(DType::i32, c.tokens, c.top_k, 1),
        weights_(DType::f32, c.tokens, c.top_k, 2) {
    for (std::int64_t t = 0; t < c.tokens; ++t)
      for (std::int64_t j = 0; j < c.top_k; ++j) {
        // Uneven: expert 0 has a token of every two.
        const std::int64_t e = t % 2 == 0 ? j : (t * 3 + j) % c.experts;
        experts_.set_integer(t, j, std::int32_t(e));
        weights_.set(t, j, 0.5f + 0.25f * noise(2, std::uint64_t(t * c.top_k + j)));
      }
    for (std::int64_t e = c.local.begin; e < c.local.end; ++e) {
      const float gate_scale = 1 / std::sqrt(float(c.hidden));
      const std::uint64_t seed = 10 + std::uint64_t(e) * 3;
      gate_.emplace_back(c.weight, c.inter, c.hidden, 1, seed, gate_scale);
      up_.emplace_back(c.weight, c.inter, c.hidden, 1, seed + 1, gate_scale);
      down_.emplace_back(c.weight, c.hidden, c.inter, 2, seed + 2,
                         1 / std::sqrt(float(c.inter) + 1));
    }
  }

  // The experts where they lie, or placed on a backend.
  std::vector<Expert> host_experts() {
    return made([](const quant::Weight& w) { return w; });
  }
  std::vector<Expert> placed_experts(Backend& backend) {
    return made([&](const quant::Weight& w) { return backend.place(w); });
  }

  ExpertMlp op(const std::vector<Expert>& experts, const View& y, Range tokens) {
    const bool routed = c_.top_k > 0;
    return {.x = x_.view().rows_of(tokens),
            .experts = routed ? experts_.view().rows_of(tokens) : View{},
            .weights = routed ? weights_.view().rows_of(tokens) : View{},
            .local = experts,
            .first_expert = c_.local.begin,
            .y = y,
            .activations = c_.activations};
  }

  // How far y[t, :] may be off. silu(gate) * up is rounded to x's dtype: an error in it that stays
  // between two rounding boundaries vanishes, one that crosses a boundary becomes a whole unit. For
  // e4m3 activations the scale is off too, by as much as the largest of its group.
  std::vector<double> bounds(std::int64_t t) const {
    const bool e4m3 = c_.activations == Activations::e4m3_per_token;
    std::vector<float> x;
    for (std::int64_t k = 0; k < c_.hidden; ++k) x.push_back(x_(t, k));
    if (e4m3) quant::e4m3_round(x.data(), c_.hidden, c_.hidden);
    double x_norm = 0;
    for (float v : x) x_norm += double(v) * v;
    x_norm = std::sqrt(x_norm);
    std::vector<double> bound(std::size_t(c_.hidden), 0.0);
    for (std::int64_t j = 0; j < std::max<std::int64_t>(c_.top_k, 1); ++j) {
      const std::int64_t e = c_.top_k > 0 ? experts_.integer(t, j) : c_.local.begin;
      if (!c_.local.contains(e)) continue;
      const std::size_t at = std::size_t(e - c_.local.begin);
      const double weight = c_.top_k > 0 ? weights_(t, j) : 1;
      std::vector<double> spread, low, high;
      double h_norm = 0;
      for (std::int64_t i = 0; i < c_.inter; ++i) {
        double gate = 0, up = 0;
        for (std::int64_t k = 0; k < c_.hidden; ++k) {
          gate += double(x[std::size_t(k)]) * gate_[at](i, k);
          up += double(x[std::size_t(k)]) * up_[at](i, k);
        }
        const double gate_error =
            product_error(c_.activations, c_.hidden, x_norm * gate_[at].norm(i));
        const double up_error = product_error(c_.activations, c_.hidden, x_norm * up_[at].norm(i));
        const double silu = gate / (1 + std::exp(-gate)), h = silu * up;
        // silu' <= 1.1; 16 roundings cover exp, the division, two products and the scales.
        const double error =
            1.1 * std::abs(up) * gate_error + std::abs(silu) * up_error + 16 * kF32 * std::abs(h);
        // Of int4 weights it may be rounded to x's dtype before.
        const double first = e4m3 && c_.weight == DType::u8 ? rounding(c_.x, h) : 0;
        low.push_back(h - error - first);
        high.push_back(h + error + first);
        if (!e4m3) spread.push_back(double(rounded(h + error, c_.x)) - rounded(h - error, c_.x));
        h_norm += h * h;
      }
      if (e4m3)
        spread = e4m3_spread(low, high, c_.weight == DType::u8 ? c_.inter : quant::kE4m3Group);
      for (std::int64_t i = 0; i < c_.hidden; ++i) {
        double error =
            product_error(c_.activations, c_.inter, 1.0625 * down_[at].norm(i) * std::sqrt(h_norm));
        for (std::int64_t k = 0; k < c_.inter; ++k)
          error += std::abs(down_[at](i, k)) * spread[std::size_t(k)];
        bound[std::size_t(i)] += std::abs(weight) * error;
      }
    }
    return bound;
  }

 private:
  // How far apart two roundings of numbers within [low, high] may be.
  static std::vector<double> e4m3_spread(const std::vector<double>& low,
                                         const std::vector<double>& high, std::int64_t group) {
    std::vector<double> spread;
    for (std::size_t begin = 0; begin < low.size(); begin += std::size_t(group)) {
      const std::size_t end = std::min(low.size(), begin + std::size_t(group));
      double least = quant::kE4m3LeastAmax, most = least;  // of the group's largest magnitude
      for (std::size_t i = begin; i < end; ++i) {
        const double a = std::abs(low[i]), b = std::abs(high[i]);
        least = std::max(least, low[i] <= 0 && high[i] >= 0 ? 0 : std::min(a, b));
        most = std::max({most, a, b});
      }
      const auto at = [&](double h, double amax) {
        return double(to_float(to_f8e4m3(float(h * 448 / amax)))) * amax / 448;
      };
      for (std::size_t i = begin; i < end; ++i) {
        // The factor may be rounded either way: a unit in the last place wider.
        const double widen = 4 * kF32;
        double bottom = 1e300, top = -1e300;
        for (double h : {low[i], high[i]})
          for (double amax : {least * (1 - widen), most * (1 + widen)}) {
            bottom = std::min(bottom, at(h, amax));
            top = std::max(top, at(h, amax));
          }
        spread.push_back(top - bottom);
      }
    }
    return spread;
  }

  template <class Place>
  std::vector<Expert> made(Place&& place) {
    std::vector<Expert> experts;
    for (std::size_t e = 0; e < gate_.size(); ++e)
      experts.push_back(
          {place(gate_[e].weight()), place(up_[e].weight()), place(down_[e].weight())});
    return experts;
  }

  MlpCase c_;
  Matrix x_, experts_, weights_;
  std::vector<TestWeight> gate_, up_, down_;
};

void compare_mlp(const MlpCase& c) {
  SCOPED_TRACE(text("tokens ", c.tokens, " hidden ", c.hidden, " inter ", c.inter, " experts ",
                    c.experts, " top_k ", c.top_k, " local [", c.local.begin, ',', c.local.end,
                    ") ", name(c.x), ' ', name(c.weight), " activations ", int(c.activations)));
  Mlp mlp(c);
  Matrix want(DType::f32, c.tokens, c.hidden, 5);
  reference(mlp.op(mlp.host_experts(), want.view(), {0, c.tokens}));
  std::vector<std::vector<double>> bounds;
  for (std::int64_t t = 0; t < c.tokens; ++t) bounds.push_back(mlp.bounds(t));
  on_every_target(
      [&](Backend& backend) {
        Matrix y(DType::f32, c.tokens, c.hidden, 5);
        backend.run(mlp.op(mlp.placed_experts(backend), y.view(), {0, c.tokens}));
        backend.wait();
        return std::vector<Matrix>{y};
      },
      [&](const std::vector<Matrix>& got) {
        expect_near(got[0], want, [&](std::int64_t t, std::int64_t i) {
          return bounds[std::size_t(t)][std::size_t(i)] + two_roundings(DType::f32, want(t, i));
        });
      },
      takes_odd_rows(c.weight, c.activations));
}

TEST(ExpertMlp, MatchesReference) {
  for (std::int64_t tokens : {0, 1, 2, 17})
    for (const auto& [hidden, inter] :
         {std::pair{1, 1}, {7, 5}, {16, 32}, {33, 31}, {65, 63}, {64, 129}})
      for (DType x : kFloats) {
        compare_mlp({tokens, hidden, inter, 8, 2, {0, 8}, x, x});
        compare_mlp({tokens, hidden, inter, 8, 2, {3, 6}, x, x});
        compare_mlp({tokens, hidden, inter, 1, 0, {0, 1}, x, x});
      }
}

TEST(ExpertMlp, MatchesReferenceAroundEveryTileOfTokens) {
  for (std::int64_t tokens : {3, 5, 8, 15, 16, 31, 33, 47, 49, 65, 130, 500})
    for (DType x : kFloats) {
      compare_mlp({tokens, 32, 24, 4, 2, {0, 4}, x, x});
      compare_mlp({tokens, 24, 33, 1, 0, {0, 1}, x, x});
    }
}

TEST(ExpertMlp, MatchesReferenceForMoreChoicesAndF32Weights) {
  for (DType x : kFloats)
    for (std::int64_t top_k : {1, 3, 4}) compare_mlp({9, 40, 24, 5, top_k, {1, 5}, x, DType::f32});
}

TEST(ExpertMlp, MatchesReferenceForE4m3Weights) {
  for (Activations a : e4m3_activations())
    for (DType x : kFloats) {
      for (std::int64_t tokens : {1, 2, 17, 65})
        for (const auto& [hidden, inter] : {std::pair{7, 5}, {33, 31}, {64, 129}, {96, 300}}) {
          compare_mlp({tokens, hidden, inter, 8, 2, {3, 6}, x, DType::f8e4m3, a});
          compare_mlp({tokens, hidden, inter, 1, 0, {0, 1}, x, DType::f8e4m3, a});
        }
      compare_mlp({2, 4096, 48, 8, 2, {0, 8}, x, DType::f8e4m3, a});
    }
}

TEST(ExpertMlp, MatchesReferenceForIntegerWeights) {
  for (DType x : kFloats) {
    for (std::int64_t tokens : {1, 2, 17, 65}) {
      for (const auto& [hidden, inter] : {std::pair{7, 5}, {33, 31}, {64, 129}}) {
        compare_mlp({tokens, hidden, inter, 8, 2, {3, 6}, x, DType::i8});
        compare_mlp({tokens, hidden, inter, 1, 0, {0, 1}, x, DType::i8});
      }
      for (const auto& [hidden, inter] : {std::pair{128, 128}, {256, 384}}) {
        for (Activations a : kActivations) {
          compare_mlp({tokens, hidden, inter, 8, 2, {3, 6}, x, DType::u8, a});
          compare_mlp({tokens, hidden, inter, 1, 0, {0, 1}, x, DType::u8, a});
        }
      }
    }
    compare_mlp({2, 4096, 48, 8, 2, {0, 8}, x, DType::i8});
    for (Activations a : kActivations) compare_mlp({2, 4096, 128, 8, 2, {0, 8}, x, DType::u8, a});
  }
}

TEST(ExpertMlp, MatchesReferenceAtMixtralsWidth) {
  for (DType x : kFloats) compare_mlp({3, 4096, 48, 8, 2, {0, 8}, x, x});
  compare_mlp({2, 64, 14336, 2, 1, {0, 2}, DType::bf16, DType::bf16});
}

TEST(ExpertMlp, IsZeroWithoutALocalExpert) {
  for (const Range local : {Range{8, 8}, Range{8, 10}}) {
    Mlp mlp({5, 24, 16, 8, 2, local, DType::bf16, DType::bf16});
    on_every_target(
        [&](Backend& backend) {
          Matrix y(DType::f32, 5, 24, 3);
          backend.run(mlp.op(mlp.placed_experts(backend), y.view(), {0, 5}));
          backend.wait();
          return std::vector<Matrix>{y};
        },
        [&](const std::vector<Matrix>& got) {
          for (std::int64_t t = 0; t < 5; ++t)
            for (std::int64_t i = 0; i < 24; ++i) ASSERT_EQ(got[0](t, i), 0) << t << ' ' << i;
        });
  }
}

TEST(ExpertMlp, TokensDoNotDependOnTheBatch) {
  for (DType dtype : kWeightTypes)
    for (std::int64_t top_k : {0, 2}) {
      const std::int64_t experts = top_k ? 8 : 1;
      const bool e4m3 = dtype == DType::f8e4m3;
      const std::int64_t hidden = dtype == DType::u8 ? 128 : 136;
      Mlp mlp({kBatchRows,
               hidden,
               dtype == DType::u8 ? 384 : 264,
               experts,
               top_k,
               {0, experts},
               is_float(dtype) ? dtype : DType::bf16,
               dtype,
               e4m3 ? e4m3_activations().front() : Activations::as_is});
      for (const Target& target : targets()) {
        SCOPED_TRACE(text(target.name(), ' ', name(dtype), " top_k ", top_k));
        const auto backend = target.make();
        const std::vector<Expert> placed = mlp.placed_experts(*backend);
        const auto run = [&](Range rows) {
          Matrix y(DType::f32, rows.size(), hidden);
          backend->run(mlp.op(placed, y.view(), rows));
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

// gate x = 0, so silu = 0; gate x = large, so silu(z) = z.
TEST(ExpertMlp, OfKnownActivations) {
  Matrix x = Matrix(DType::f32, 1, 2).floats({1, 2});
  Matrix gate = Matrix(DType::f32, 2, 2).floats({2, -1, 100, 0});   // gate x = 0, 100
  Matrix up = Matrix(DType::f32, 2, 2).floats({5, 5, 1, 1});        // up x = 15, 3
  Matrix down = Matrix(DType::f32, 2, 2).floats({7, 1, 9, -0.5f});  // y = 300, -150
  Matrix y(DType::f32, 1, 2);
  const std::vector<Expert> local{{gate.weight(), up.weight(), down.weight()}};
  ExpertMlp op{.x = x.view(),
               .experts = {},
               .weights = {},
               .local = local,
               .first_expert = 0,
               .y = y.view()};
  reference(op);
  EXPECT_FLOAT_EQ(y(0, 0), 300);
  EXPECT_FLOAT_EQ(y(0, 1), -150);

  // The same as expert 4 of a routed layer, chosen twice among others.
  Matrix experts = Matrix(DType::i32, 1, 3).integers({4, 3, 4});
  Matrix weights = Matrix(DType::f32, 1, 3).floats({0.25f, 8, 0.5f});
  op.experts = experts.view();
  op.weights = weights.view();
  op.first_expert = 4;
  reference(op);
  EXPECT_FLOAT_EQ(y(0, 0), 225);
  EXPECT_FLOAT_EQ(y(0, 1), -112.5f);
}

TEST(ExpertMlp, RefusesWhatTheContractDoes) {
  Matrix x(DType::bf16, 3, 8), gate(DType::bf16, 6, 8), up(DType::bf16, 6, 8),
      down(DType::bf16, 8, 6), experts(DType::i32, 3, 2), weights(DType::f32, 3, 2),
      y(DType::f32, 3, 8);
  const std::vector<Expert> fine(2, {gate.weight(), up.weight(), down.weight()});
  std::vector<Expert> local = fine;
  const ExpertMlp good{.x = x.view(),
                       .experts = experts.view(),
                       .weights = weights.view(),
                       .local = local,
                       .first_expert = 0,
                       .y = y.view()};
  check(good);
  ExpertMlp op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
    std::copy(fine.begin(), fine.end(), local.begin());
  };
  local[0].down.data.rows = 7;
  refuses("ExpertMlp: down is bf16 [7,6], wanted [8,6]");
  local[1].gate.data.rows = 5;
  refuses("ExpertMlp: gate is bf16 [5,8], wanted [6,8]");
  local[1].up.data.dtype = DType::f16;
  refuses("ExpertMlp: up is f16 [6,8], wanted bf16 or f32");
  op.experts = op.weights = {};
  refuses("ExpertMlp: 2 local experts and no choice of experts, wanted 1");
  op.experts = {};
  op.local = op.local.first(1);
  refuses("ExpertMlp: weights is f32 [3,2] without a choice of experts");
  op.weights = {};
  refuses("ExpertMlp: weights is f32 [0,0], wanted [3,2]");
  op.y.dtype = DType::bf16;
  refuses("ExpertMlp: y is bf16 [3,8], wanted f32");
  op.y.rows = 2;
  refuses("ExpertMlp: y is f32 [2,8], wanted [3,8]");
  op.y.data = op.x.data;
  refuses("ExpertMlp: y is the memory of x");
  op.first_expert = -1;
  refuses("ExpertMlp: first_expert is -1, wanted >= 0");
  op.experts.dtype = DType::f32;
  refuses("ExpertMlp: experts is f32 [3,2], wanted i32");
  local[0].up.data.dtype = DType::i8;
  refuses("ExpertMlp: up is i8 [6,8] and has a scale f32 [0,0], wanted f32 [1,6]");
  local[0].up.data.dtype = DType::i32;
  expect_error<Unsupported>([&] { check(op); },
                            "ExpertMlp: up has no i32 version; it has: f32 f16 bf16");
}

}  // namespace
}  // namespace ostro::ops
