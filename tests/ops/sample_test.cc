// Sample: the contract in ops/sample.h, for every backend of this build. What the host's code does
// is tested against known answers in tests/engine/sampler_test.cc.
#include "ops/sample.h"

#include <limits>

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Outputs {
  Matrix tokens, log_probs, best, best_log_probs;
  Outputs(std::int64_t rows, std::int64_t most)
      : tokens(DType::i32, rows, 1, 3),
        log_probs(DType::f32, rows, 1, 3),
        best(DType::i32, rows, most, 2),
        best_log_probs(DType::f32, rows, most, 2) {}
};

Matrix in_words(const std::vector<SampleSettings>& settings) {
  Matrix m(DType::i32, std::int64_t(settings.size()), kSettingWords, 1);
  for (std::size_t r = 0; r < settings.size(); ++r)
    for (std::int64_t i = 0; i < kSettingWords; ++i) {
      std::int32_t word;
      std::memcpy(&word, reinterpret_cast<const char*>(&settings[r]) + 4 * i, 4);
      m.set_integer(std::int64_t(r), i, word);
    }
  return m;
}

Sample op_of(Matrix& logits, Matrix& words, Outputs& out) {
  return {.logits = logits.view(),
          .settings = words.view(),
          .tokens = out.tokens.view(),
          .log_probs = out.log_probs.view(),
          .best = out.best.view(),
          .best_log_probs = out.best_log_probs.view()};
}

// Tokens are those of the reference: its sums differ from fixed point by 2^-30 of all at most,
// which no draw of these seeds meets. Log-probabilities: both round an f64 to f32, so by 1 ulp at
// most.
void compare(Matrix& logits, const std::vector<SampleSettings>& settings, std::int64_t most) {
  SCOPED_TRACE(text("vocab ", logits.cols(), ", ", settings.size(), " rows, best ", most));
  Matrix words = in_words(settings);
  const auto rows = std::int64_t(settings.size());
  Outputs want(rows, most);
  reference(op_of(logits, words, want));
  on_every_target(
      [&](Backend& backend) {
        Outputs got(rows, most);
        backend.run(op_of(logits, words, got));
        backend.wait();
        return std::vector<Matrix>{got.tokens, got.log_probs, got.best, got.best_log_probs};
      },
      [&](const std::vector<Matrix>& got) {
        const auto near = [](float a, float b) {
          return a == b || std::abs(a - b) <= std::abs(b) * 0x1p-23f;
        };
        for (std::int64_t r = 0; r < rows; ++r) {
          const SampleSettings& s = settings[std::size_t(r)];
          SCOPED_TRACE(text("row ", s.row, " temperature ", s.temperature, " top_k ", s.top_k,
                            " top_p ", s.top_p, " min_p ", s.min_p, " step ", s.step));
          ASSERT_EQ(got[0].integer(r, 0), want.tokens.integer(r, 0));
          ASSERT_TRUE(near(got[1](r, 0), want.log_probs(r, 0)))
              << got[1](r, 0) << ' ' << want.log_probs(r, 0);
          for (std::int64_t j = 0; j < most; ++j) {
            ASSERT_EQ(got[2].integer(r, j), want.best.integer(r, j)) << j;
            ASSERT_TRUE(near(got[3](r, j), want.best_log_probs(r, j))) << j;
          }
        }
      });
}

std::vector<SampleSettings> every_rule(std::int32_t rows, std::uint32_t draws) {
  std::vector<SampleSettings> all;
  std::uint32_t step = 0;
  for (float temperature : {0.0f, 0.01f, 0.7f, 1.0f, 3.0f})
    for (std::int32_t top_k : {0, 1, 2, 40, 1 << 20})
      for (float top_p : {0.0f, 0.3f, 0.95f, 1.0f})
        for (float min_p : {0.0f, 0.05f, 1.0f})
          for (std::uint32_t i = 0; i < draws; ++i) {
            SampleSettings s;
            s.row = std::int32_t(step % std::uint32_t(rows));
            s.log_prob = step % 3 != 0;
            s.alternatives = step % 4 == 0 ? std::int32_t(step % 7) : 0;
            s.temperature = temperature;
            s.top_k = top_k;
            s.top_p = top_p;
            s.min_p = min_p;
            s.step = step++;
            s.set_seed(0x123456789abcdef0u + i);
            all.push_back(s);
          }
  return all;
}

TEST(Sample, MatchesReferenceByEveryRule) {
  for (std::int64_t vocab : {1, 2, 31, 33, 1000, 1025}) {
    Matrix logits = Matrix(DType::f32, 3, vocab, 2).random(std::uint64_t(vocab), 3);
    for (std::int64_t most : {0, 5}) compare(logits, every_rule(3, 2), most);
  }
}

TEST(Sample, MatchesReferenceAtMixtralsSize) {
  Matrix logits = Matrix(DType::f32, 5, 32000).random(1, 2.5f);
  compare(logits, every_rule(5, 1), 3);
  Matrix wide = Matrix(DType::f32, 1, 131072).random(2, 2.5f);
  compare(wide, every_rule(1, 1), 1);
}

// What spreads badly over bins: equal logits, few different ones, far apart ones, none allowed.
TEST(Sample, MatchesReferenceForOddRows) {
  const std::int64_t vocab = 5000;
  Matrix logits(DType::f32, 8, vocab);
  for (std::int64_t i = 0; i < vocab; ++i) {
    logits.set(0, i, 1.5f);
    logits.set(1, i, i % 2 ? 0.0f : -0.0f);
    logits.set(2, i, i % 7 ? -kInf : float(i % 3));
    logits.set(3, i, i % 5 ? kNan : float(i % 11));
    logits.set(4, i, i == 4321 ? 5.0f : -kInf);
    logits.set(5, i, i % 2 ? 3e38f : -3e38f);
    logits.set(6, i, i % 3 ? -kInf : kNan);   // none
    logits.set(7, i, i == 17 ? kInf : 1.0f);  // none finite
  }
  compare(logits, every_rule(8, 8), 4);
}

TEST(Sample, NoRow) {
  Matrix logits = Matrix(DType::f32, 2, 50).random(1);
  SampleSettings none, greedy;
  none.row = -1;
  greedy.row = 1;
  compare(logits, {none, greedy, none}, 2);
  compare(logits, {}, 2);
}

TEST(Sample, RefusesWhatTheContractDoes) {
  Matrix logits(DType::f32, 2, 50), words = in_words({SampleSettings{}, SampleSettings{}});
  Outputs out(2, 3);
  const Sample good = op_of(logits, words, out);
  check(good);
  Sample op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.logits.dtype = DType::bf16;
  refuses("Sample: logits is bf16 [2,50], wanted f32");
  op.settings.cols = 3;
  refuses("Sample: settings is i32 [2,3], wanted [2,10]");
  op.tokens.rows = 1;
  refuses("Sample: tokens is i32 [1,1], wanted [2,1]");
  op.log_probs.dtype = DType::f16;
  refuses("Sample: log_probs is f16 [2,1], wanted f32");
  op.best_log_probs.cols = 2;
  refuses("Sample: best_log_probs is f32 [2,2], wanted [2,3]");
  SampleSettings far;
  far.row = 2;
  Matrix bad = in_words({far, far});
  expect_error<InvalidArgument>([&] { reference(op_of(logits, bad, out)); },
                                "Sample: settings[0] has row 2, logits is f32 [2,50]");
}

}  // namespace
}  // namespace ostro::ops
