// The GEMM of prompts (kernels/gemm_tma.cuh) at shapes that are not multiples of its tiles, and
// their router (kernels/route_prompts.cu): results are, bit for bit, those of steps so small that
// other kernels compute them, which the op tests compare with reference().
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "backends/cuda/backend.h"
#include "backends/cuda/plan/gemm_plan.h"
#include "backends/cuda/plan/tactics.h"
#include "ops/moe.h"
#include "ops/norm.h"
#include "ops/testing.h"
#include "quant/int4.h"
#include "tensor/dtype.h"

namespace ostro::cuda {
namespace {

using namespace ops::testing;

constexpr std::int64_t kSmall = kLargestTileWithoutTma;  // tokens that take other kernels
static_assert(kSmall < kTmaTile);

struct OnDevice {
  Buffer memory;
  View view;
  OnDevice(ops::Backend& gpu, const View& host)
      : memory(gpu.allocate(host.bytes())), view(memory.view(host.dtype, host.rows, host.cols)) {
    gpu.copy(host, view);
  }
};

// Weights of pseudo-random numbers from a byte each, quick to make at these sizes; u8: int4.
class Weight {
 public:
  Weight(DType type, std::int64_t n, std::int64_t k, std::uint64_t seed)
      : type_(type),
        n_(n),
        k_(k),
        cols_(type == DType::u8 ? k / 2 : k),
        data_(std::size_t(n * cols_) * size_of(type)),
        scale_(std::size_t(n)),
        group_scale_(type == DType::u8 ? std::size_t(n * k / quant::kInt4Group) : 0) {
    std::uint64_t state = seed * 2 + 1;
    for (std::size_t i = 0; i < std::size_t(n * cols_); ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      auto byte = std::uint8_t(state >> 56);
      if (type == DType::f8e4m3 && byte % 128 >= 120)
        byte = std::uint8_t(byte ^ 64);  // at most 240, and no NaN
      const float small = float(std::int8_t(byte)) * 0x1p-13f;
      if (size_of(type) == 1)
        data_[i] = byte;
      else
        convert(&small, DType::f32, data_.data() + i * size_of(type), type, 1);
    }
    for (std::size_t i = 0; i < scale_.size(); ++i) scale_[i] = 1e-4f * float(1 + i % 7);
    for (std::size_t i = 0; i < group_scale_.size(); ++i)
      group_scale_[i] = to_bf16(1e-3f * float(1 + i % 11));
  }
  quant::Weight placed(ops::Backend& gpu) {
    const View scale = type_ == DType::u8
                           ? matrix(group_scale_.data(), DType::bf16, n_, k_ / quant::kInt4Group)
                           : matrix(scale_.data(), DType::f32, 1, n_);
    return gpu.place({.data = matrix(data_.data(), type_, n_, cols_),
                      .scale = is_float(type_) ? View{} : scale});
  }

 private:
  DType type_;
  std::int64_t n_, k_, cols_;
  std::vector<std::uint8_t> data_;
  std::vector<float> scale_;
  std::vector<bf16> group_scale_;
};

constexpr auto kAsIs = ops::Activations::as_is, kRounded = ops::Activations::e4m3_per_token;
struct Format {
  DType weights;
  ops::Activations activations;
  DType activation_type() const { return weights == DType::f16 ? DType::f16 : DType::bf16; }
  std::string text() const {
    return std::string(name(weights)) + (activations == kAsIs ? "" : " x e4m3");
  }
};
constexpr Format kFormats[] = {{DType::f8e4m3, kRounded}, {DType::bf16, kAsIs},
                               {DType::f16, kAsIs},       {DType::i8, kAsIs},
                               {DType::u8, kAsIs},        {DType::u8, kRounded}};

// run(rows) computes these rows of the result: all of them, and kSmall at a time.
template <class Run>
void expect_same_in_small_steps(std::int64_t tokens, Run&& run, std::int64_t step = kSmall) {
  const Matrix whole = run(Range{0, tokens});
  expect_same_rows(run(Range{0, tokens}), whole, 0);
  for (std::int64_t first = 0; first < tokens; first += step)
    expect_same_rows(run(Range{first, std::min(first + step, tokens)}), whole, first);
}

// Rows of x w^T.
class LinearOnDevice {
 public:
  LinearOnDevice(ops::Backend& gpu, const Format& format, std::int64_t tokens, std::int64_t n,
                 std::int64_t k)
      : gpu_(gpu),
        activations_(format.activations),
        n_(n),
        k_(k),
        host_x_(Matrix(format.activation_type(), tokens, (k + 7) / 8 * 8).random(1)),
        x_(gpu, host_x_.view()),
        weight_(format.weights, n, k, 2),
        placed_(weight_.placed(gpu)) {}

  Matrix run(Range rows, DType y_type) {
    Matrix y(y_type, rows.size(), n_);
    const OnDevice out(gpu_, y.view());
    gpu_.run(ops::Linear{.x = x_.view.rows_of(rows).cols_of({0, k_}),
                         .w = placed_,
                         .y = out.view,
                         .activations = activations_});
    gpu_.copy(out.view, y.view());
    gpu_.wait();
    return y;
  }

 private:
  ops::Backend& gpu_;
  ops::Activations activations_;
  std::int64_t n_, k_;
  Matrix host_x_;
  OnDevice x_;
  Weight weight_;
  quant::Weight placed_;
};

TEST(Prompts, LinearIsThatOfSmallSteps) {
  const auto gpu = make_backend();
  for (const Format& format : kFormats)
    for (const auto& [tokens, n, k] : {std::array<std::int64_t, 3>{700, 5000, 400},
                                       {2900, 1030, 200},
                                       {2049, 1700, 16},
                                       {3000, 1025, 129},
                                       {1500, 4000, 1152},
                                       {2049, 4096, 4096}})
      for (DType y_type : {DType::f32, format.activation_type()}) {
        const DType type = format.weights;
        SCOPED_TRACE(
            text(format.text(), ": ", tokens, " tokens, n ", n, " k ", k, " to ", name(y_type)));
        if (type == DType::u8 && k % quant::kInt4Group != 0) continue;
        if (type == DType::i8 || type == DType::u8)
          ASSERT_EQ(integer_tile(tokens, n, false, 132), kIntegerTmaTile);
        else
          ASSERT_EQ(planned_tile({type, n, k}, tokens, 132), kTmaTile);
        LinearOnDevice linear(*gpu, format, tokens, n, k);
        expect_same_in_small_steps(tokens, [&](Range rows) { return linear.run(rows, y_type); });
        if (HasFailure()) return;
      }
}

// Whether or not y may be left unwritten, the product that reads it gives the same; rows that the
// norm's kernel keeps whole, longer ones, and ones that it does not round.
TEST(Prompts, NormForProductsAlone) {
  const auto gpu = make_backend();
  for (const auto& [tokens, hidden] :
       {std::array<std::int64_t, 2>{1, 4096}, {300, 512}, {700, 8704}, {70, 402}}) {
    SCOPED_TRACE(text(tokens, " tokens, hidden ", hidden));
    Matrix x = Matrix(DType::f32, tokens, hidden).random(1);
    Matrix weight = Matrix(DType::bf16, 1, hidden).random(2);
    const OnDevice weight_on(*gpu, weight.view());
    const quant::Weight placed = Weight(DType::f8e4m3, 200, hidden, 3).placed(*gpu);
    const auto run = [&](bool for_products) {
      Matrix y(DType::f32, tokens, 200), unwritten(DType::bf16, tokens, hidden);
      const OnDevice residual(*gpu, x.view()), h(*gpu, unwritten.view()), out(*gpu, y.view());
      gpu->run(ops::AddRmsNorm{.x = {},
                               .residual = residual.view,
                               .weight = weight_on.view,
                               .y = h.view,
                               .eps = 1e-5f,
                               .activations = kRounded,
                               .for_products = for_products});
      gpu->run(ops::Linear{.x = h.view, .w = placed, .y = out.view, .activations = kRounded});
      gpu->copy(out.view, y.view());
      gpu->wait();
      return y;
    };
    expect_same_rows(run(true), run(false), 0);
  }
}

// Blocks of 32, 48 and 64 weight rows, tiles of 8 to 64 tokens.
TEST(Prompts, LinearIsThatOfStepsOfDecoding) {
  constexpr std::int64_t kTokens = 300;
  const auto gpu = make_backend();
  for (const auto& [n, k] : {std::array<std::int64_t, 2>{4096, 4096}, {6137, 1152}, {7013, 400}}) {
    for (const std::int64_t tokens : {1, 128}) ASSERT_TRUE(decode_tile_takes(tokens, n, 132));
    LinearOnDevice linear(*gpu, kFormats[0], kTokens, n, k);
    for (const DType y_type : {DType::f32, DType::bf16})
      for (const std::int64_t step : {5, 27, 61, 100, 128}) {
        SCOPED_TRACE(text(n, " x ", k, " to ", name(y_type), ", steps of ", step));
        expect_same_in_small_steps(
            kTokens, [&](Range rows) { return linear.run(rows, y_type); }, step);
        if (HasFailure()) return;
      }
  }
}

// Of 65 tokens and more in one wave: tiles of 64 to 192 weight rows by 64 and 128 tokens, ends of
// both, more stages than K has and fewer.
TEST(Prompts, LinearInOneWaveIsThatOfStepsOfDecoding) {
  const auto gpu = make_backend();
  for (const auto& [tokens, n, k] : {std::array<std::int64_t, 3>{65, 4096, 4096},
                                     {100, 6144, 129},
                                     {128, 8190, 400},
                                     {120, 12000, 1152},
                                     {129, 4096, 4096},
                                     {200, 6144, 1152},
                                     {256, 4100, 16},
                                     {300, 4096, 1152},
                                     {333, 6137, 400},
                                     {390, 2056, 129},
                                     {512, 6144, 4096},
                                     {700, 4090, 2000}}) {
    ASSERT_EQ(planned_tile({DType::f8e4m3, n, k}, tokens, 132), kDecodeTile);
    LinearOnDevice linear(*gpu, kFormats[0], tokens, n, k);
    for (const DType y_type : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(text(tokens, " tokens, ", n, " x ", k, " to ", name(y_type)));
      expect_same_in_small_steps(
          tokens, [&](Range rows) { return linear.run(rows, y_type); }, kMostDenseTokens);
      if (HasFailure()) return;
    }
  }
}

TEST(Prompts, RouteIsThatOfSmallSteps) {
  const auto gpu = make_backend();
  constexpr std::int64_t kTokens = 2101, kLive = 2090;
  for (const DType type : {DType::bf16, DType::f16})
    for (const auto& [hidden, experts, top_k] :
         {std::array<std::int64_t, 3>{4096, 8, 2}, {2312, 5, 3}, {264, 1, 1}, {8, 8, 8}}) {
      SCOPED_TRACE(text(name(type), ": hidden ", hidden, " experts ", experts, " top_k ", top_k));
      Matrix x = Matrix(type, kTokens, hidden).random(1);
      for (std::int64_t c = 0; c < hidden; ++c) {
        x.set(700, c, std::nanf(""));  // ranks last
        x.set(701, c, 0);              // all alike
      }
      Matrix router = Matrix(type, experts, hidden).random(2, 0.1f);
      Matrix live = Matrix(DType::i32, 1, 1).integers({std::int32_t(kLive)});
      const OnDevice x_on(*gpu, x.view()), router_on(*gpu, router.view()),
          live_on(*gpu, live.view());
      // Of `rows`: experts and weights; `count`: how many are no padding.
      const auto run = [&](Range rows, const View& count, DType wanted) {
        Matrix chosen(DType::i32, rows.size(), top_k), weights(DType::f32, rows.size(), top_k);
        const OnDevice chosen_on(*gpu, chosen.view()), weights_on(*gpu, weights.view());
        gpu->run(ops::Route{.x = x_on.view.rows_of(rows),
                            .router = {.data = router_on.view, .scale = {}},
                            .experts = chosen_on.view,
                            .weights = weights_on.view,
                            .renormalize = experts == 8,
                            .live = count});
        gpu->copy(chosen_on.view, chosen.view());
        gpu->copy(weights_on.view, weights.view());
        gpu->wait();
        return wanted == DType::i32 ? chosen : weights;
      };
      for (const DType wanted : {DType::i32, DType::f32}) {
        expect_same_in_small_steps(kTokens, [&](Range rows) { return run(rows, {}, wanted); });
        const Matrix padded = run({0, kTokens}, live_on.view, wanted);
        expect_same_rows(run({0, 64}, {}, wanted), padded, 0);
        for (std::int64_t j = 0; j < top_k; ++j)
          EXPECT_EQ(padded(kLive, j), wanted == DType::i32 ? -1 : 0);
      }
      if (HasFailure()) return;
    }
}

// Experts with two choices a token. Dense where all rows are one expert's; else the last expert is
// nobody's and the first another rank's.
class ExpertsOnDevice {
 public:
  ExpertsOnDevice(ops::Backend& gpu, const Format& format, bool routed, std::int64_t tokens,
                  std::int64_t hidden, std::int64_t inter)
      : gpu_(gpu),
        activations_(format.activations),
        routed_(routed),
        hidden_(hidden),
        host_x_(Matrix(format.activation_type(), tokens, (hidden + 7) / 8 * 8).random(1)),
        host_chosen_(DType::i32, tokens, kTopK),
        host_weights_(DType::f32, tokens, kTopK),
        x_(gpu, host_x_.view()),
        chosen_(gpu, choose().view()),
        weights_(gpu, host_weights_.view()) {
    for (std::int64_t e = routed ? 1 : kExperts - 1; e < kExperts; ++e) {
      const DType type = format.weights;
      const auto seed = std::uint64_t(10 * e);
      local_.push_back({Weight(type, inter, hidden, seed).placed(gpu),
                        Weight(type, inter, hidden, seed + 1).placed(gpu),
                        Weight(type, hidden, inter, seed + 2).placed(gpu)});
    }
  }

  Matrix run(Range rows) {
    Matrix y(DType::f32, rows.size(), hidden_);
    const OnDevice out(gpu_, y.view());
    gpu_.run(ops::ExpertMlp{.x = x_.view.rows_of(rows).cols_of({0, hidden_}),
                            .experts = routed_ ? chosen_.view.rows_of(rows) : View{},
                            .weights = routed_ ? weights_.view.rows_of(rows) : View{},
                            .local = local_,
                            .first_expert = routed_ ? 1 : 0,
                            .y = out.view,
                            .activations = activations_});
    gpu_.copy(out.view, y.view());
    gpu_.wait();
    return y;
  }

 private:
  static constexpr std::int64_t kExperts = 6, kTopK = 2;

  Matrix& choose() {
    for (std::int64_t t = 0; t < host_chosen_.view().rows; ++t)
      for (std::int64_t j = 0; j < kTopK; ++j) {
        const std::int64_t spread = (t * 5 + t / 7 + j) % (kExperts - 1);
        host_chosen_.set_integer(t, j, std::int32_t(t % 3 == 0 ? j + 1 : spread));
        host_weights_.set(t, j, 0.25f + 0.5f * float(j));
      }
    return host_chosen_;
  }

  ops::Backend& gpu_;
  ops::Activations activations_;
  bool routed_;
  std::int64_t hidden_;
  Matrix host_x_, host_chosen_, host_weights_;
  OnDevice x_, chosen_, weights_;
  std::vector<ops::Expert> local_;
};

bool int4_takes(std::int64_t hidden, std::int64_t inter) {
  return hidden % quant::kInt4Group == 0 && inter % quant::kInt4Group == 0;
}

TEST(Prompts, ExpertsAreThoseOfSmallSteps) {
  const auto gpu = make_backend();
  for (const Format& format : kFormats)
    for (const bool routed : {true, false})
      for (const auto& [tokens, hidden, inter] : {std::array<std::int64_t, 3>{65, 128, 128},
                                                  {130, 16, 257},
                                                  {160, 640, 1152},
                                                  {230, 640, 1152},
                                                  {250, 1030, 392},
                                                  {321, 401, 200},
                                                  {500, 1030, 392},
                                                  {1500, 512, 1500},
                                                  {2100, 700, 3000},
                                                  {700, 640, 1152},
                                                  {1088, 640, 1152},
                                                  {300, 2048, 7168}}) {
        if (format.weights == DType::u8 && !int4_takes(hidden, inter)) continue;
        SCOPED_TRACE(text(format.text(), ' ', routed, ": ", tokens, " tokens, hidden ", hidden,
                          " inter ", inter));
        ExpertsOnDevice experts(*gpu, format, routed, tokens, hidden, inter);
        expect_same_in_small_steps(tokens, [&](Range rows) { return experts.run(rows); });
        if (HasFailure()) return;
      }
}

// Tiles of 8 to 64 tokens. Of two tokens down is multiplied in tiles of 64 weight rows, of seven in
// tiles of 256; blocks have several, and K ends within a stage.
TEST(Prompts, ExpertsAreThoseOfStepsOfDecoding) {
  constexpr std::int64_t kTokens = 300, kHidden = 5120, kInter = 1152;
  const auto gpu = make_backend();
  for (const Format& format : kFormats) {
    ExpertsOnDevice experts(*gpu, format, true, kTokens, kHidden, kInter);
    for (const std::int64_t step : {2, 7, 13, 29, 100}) {
      SCOPED_TRACE(text(format.text(), ", steps of ", step));
      expect_same_in_small_steps(
          kTokens, [&](Range rows) { return experts.run(rows); }, step);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace ostro::cuda
