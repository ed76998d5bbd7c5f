// Mixtral 8x7B's products at full width against sums in f64, at outputs drawn at random.
#include <cmath>
#include <random>

#include "backends/cuda/backend.h"
#include "ops/moe.h"
#include "ops/testing.h"

namespace ostro::cuda {
namespace {

using namespace ops::testing;

constexpr std::int64_t kHidden = 4096, kInter = 14336;

// A bf16 matrix, quick to fill at these sizes: rows repeat a random block shifted by one.
class Wide {
 public:
  Wide(std::int64_t rows, std::int64_t cols, unsigned seed, float scale)
      : rows_(rows), cols_(cols), values_(std::size_t(rows * cols)) {
    std::mt19937 rng(seed);
    std::uniform_real_distribution<float> uniform(-scale, scale);
    std::vector<bf16> block(std::size_t(2 * cols + rows));
    for (bf16& b : block) b = to_bf16(uniform(rng));
    for (std::int64_t r = 0; r < rows; ++r)
      std::copy_n(block.begin() + (r * 2654435761u) % (cols + rows), cols,
                  values_.begin() + r * cols);
  }
  View view() { return matrix(values_.data(), DType::bf16, rows_, cols_); }
  const bf16* row(std::int64_t r) const { return values_.data() + r * cols_; }

 private:
  std::int64_t rows_, cols_;
  std::vector<bf16> values_;
};

double dot(const bf16* a, const bf16* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double(to_float(a[i])) * to_float(b[i]);
  return sum;
}
double norm(const bf16* a, std::int64_t n) { return std::sqrt(dot(a, a, n)); }

struct OnDevice {
  Buffer memory;
  View view;
  OnDevice(ops::Backend& gpu, const View& host)
      : memory(gpu.allocate(host.bytes())), view(memory.view(host.dtype, host.rows, host.cols)) {
    gpu.copy(host, view);
  }
};

TEST(FullWidth, Linear) {
  const auto gpu = make_backend();
  const std::int64_t n = 6144 + 17;
  Wide w(n, kHidden, 1, 0.03f);
  const quant::Weight placed = gpu->place({.data = w.view(), .scale = {}});
  std::mt19937 rng(3);
  for (std::int64_t tokens : {1, 8, 9, 32, 64, 65, 128, 129, 1000}) {
    Wide x(tokens, kHidden, 2, 1.7f);
    const OnDevice on(*gpu, x.view());
    Matrix y(DType::f32, tokens, n);
    const OnDevice out(*gpu, y.view());
    gpu->run(ops::Linear{.x = on.view, .w = placed, .y = out.view});
    gpu->copy(out.view, y.view());
    gpu->wait();
    for (int i = 0; i < 3000; ++i) {
      const std::int64_t t = i < tokens ? i : std::int64_t(rng() % unsigned(tokens));
      const std::int64_t o = i < 40 ? n - 1 - i : std::int64_t(rng() % unsigned(n));
      const double want = dot(x.row(t), w.row(o), kHidden);
      const double bound = sum_error(kHidden, norm(x.row(t), kHidden) * norm(w.row(o), kHidden));
      ASSERT_NEAR(y(t, o), want, bound) << tokens << " tokens, " << t << ' ' << o;
    }
  }
}

TEST(FullWidth, ExpertMlp) {
  const auto gpu = make_backend();
  constexpr std::int64_t kExperts = 3, kTopK = 2;
  std::vector<Wide> gate, up, down;
  std::vector<ops::Expert> experts;
  for (unsigned e = 0; e < kExperts; ++e) {
    gate.emplace_back(kInter, kHidden, 10 + e, 0.03f);
    up.emplace_back(kInter, kHidden, 20 + e, 0.03f);
    down.emplace_back(kHidden, kInter, 30 + e, 0.015f);
  }
  for (std::size_t e = 0; e < kExperts; ++e)
    experts.push_back({gpu->place({.data = gate[e].view(), .scale = {}}),
                       gpu->place({.data = up[e].view(), .scale = {}}),
                       gpu->place({.data = down[e].view(), .scale = {}})});
  std::mt19937 rng(5);
  for (std::int64_t tokens : {1, 7, 16, 40, 100, 700}) {
    Wide x(tokens, kHidden, 2, 1.7f);
    Matrix chosen(DType::i32, tokens, kTopK), weights(DType::f32, tokens, kTopK);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto first = std::int32_t(rng() % kExperts);
      chosen.set_integer(t, 0, first);
      chosen.set_integer(t, 1, (first + 1 + std::int32_t(rng() % 2)) % std::int32_t(kExperts));
      weights.set(t, 0, 0.7f);
      weights.set(t, 1, 0.3f);
    }
    const OnDevice x_on(*gpu, x.view()), chosen_on(*gpu, chosen.view()),
        weights_on(*gpu, weights.view());
    const auto run = [&] {
      Matrix y(DType::f32, tokens, kHidden);
      const OnDevice out(*gpu, y.view());
      gpu->run(ops::ExpertMlp{.x = x_on.view,
                              .experts = chosen_on.view,
                              .weights = weights_on.view,
                              .local = experts,
                              .first_expert = 0,
                              .y = out.view});
      gpu->copy(out.view, y.view());
      gpu->wait();
      return y;
    };
    const Matrix y = run();
    expect_same_rows(run(), y, 0);  // the same in every run
    // One token in full: its hidden rows in f64, rounded as the contract says.
    const std::int64_t t = tokens - 1;
    std::vector<double> want(kHidden, 0.0);
    double magnitude = 0;
    for (std::int64_t j = 0; j < kTopK; ++j) {
      const auto e = std::size_t(chosen.integer(t, j));
      std::vector<bf16> h(kInter);
      for (std::int64_t i = 0; i < kInter; ++i) {
        const double g = dot(x.row(t), gate[e].row(i), kHidden);
        h[std::size_t(i)] =
            to_bf16(float(g / (1 + std::exp(-g)) * dot(x.row(t), up[e].row(i), kHidden)));
      }
      magnitude += weights(t, j) * norm(h.data(), kInter) * norm(down[e].row(0), kInter);
      for (std::int64_t i = 0; i < kHidden; ++i)
        want[std::size_t(i)] += weights(t, j) * dot(h.data(), down[e].row(i), kInter);
    }
    // An h that lies on a rounding boundary may round the other way, by 2^-8 of itself: few do, and
    // their effect on a sum of kInter terms stays below 2^-8 of one term's share of the norms.
    const double bound = magnitude * (0x1p-8 / std::sqrt(double(kInter)) * 4 + 0x1p-20);
    double worst = 0;
    for (std::int64_t i = 0; i < kHidden; ++i)
      worst = std::max(worst, std::abs(y(t, i) - want[std::size_t(i)]));
    EXPECT_LT(worst, bound) << tokens << " tokens";
  }
}

}  // namespace
}  // namespace ostro::cuda
