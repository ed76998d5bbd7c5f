// batch.invariant: the bits of a row do not depend on the rows beside it, on the number of threads,
// or on how a prompt was cut.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/backend.h"
#include "backends/cpu/isa.h"

namespace ostro::cpu {
namespace {

struct Matrix {
  Buffer buffer;
  View view;
};

class Invariant : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override {
    for (const int threads : {1, 2, 3})
      backends_.push_back(make_backend({.threads = threads, .isa = std::get<0>(GetParam())}));
  }
  DType dtype() const { return std::get<1>(GetParam()); }

  Matrix random(DType dtype, std::int64_t rows, std::int64_t cols, float scale = 1) {
    std::vector<float> values(std::size_t(rows * cols));
    std::normal_distribution<float> normal(0, scale);
    for (float& v : values) v = normal(random_);
    Matrix m = zeros(dtype, rows, cols);
    convert(values.data(), DType::f32, m.view.data, dtype, values.size());
    return m;
  }
  static Matrix zeros(DType dtype, std::int64_t rows, std::int64_t cols) {
    Matrix m;
    m.buffer = allocate_host(std::size_t(rows * cols) * size_of(dtype) + 64);
    m.view = m.buffer.view(dtype, rows, cols);
    return m;
  }
  static Matrix ints(const std::vector<std::int32_t>& values) {
    Matrix m = zeros(DType::i32, 1, std::int64_t(values.size()));
    std::memcpy(m.view.data, values.data(), values.size() * sizeof(std::int32_t));
    return m;
  }
  static bool same_bits(const View& a, const View& b) {
    for (std::int64_t r = 0; r < a.rows; ++r) {
      const auto row = [r](const View& v) {
        return static_cast<const char*>(v.data) + std::size_t(r * v.row_stride) * size_of(v.dtype);
      };
      if (std::memcmp(row(a), row(b), std::size_t(a.cols) * size_of(a.dtype)) != 0) return false;
    }
    return true;
  }

  std::mt19937 random_{7};
  std::vector<std::unique_ptr<ops::Backend>> backends_;
};

TEST_P(Invariant, Linear) {
  for (const std::int64_t k : {40, 1024, 2100})
    for (const std::int64_t n : {7, 300}) {
      constexpr std::int64_t kTokens = 600;  // more than one block of rows
      const Matrix x = random(dtype(), kTokens, k), w = random(dtype(), n, k);
      Matrix all = zeros(DType::f32, kTokens, n);
      backends_[0]->run(ops::Linear{x.view, {w.view, {}}, all.view});
      for (const auto& backend : backends_)
        for (const Range rows : {Range{0, 1}, Range{3, 5}, Range{7, 12}, Range{20, 68},
                                 Range{100, 200}, Range{0, kTokens}}) {
          Matrix some = zeros(DType::f32, rows.size(), n);
          backend->run(ops::Linear{x.view.rows_of(rows), {w.view, {}}, some.view});
          EXPECT_TRUE(same_bits(some.view, all.view.rows_of(rows)))
              << backend->description() << ", k " << k << ", n " << n << ", rows " << rows.begin
              << " to " << rows.end;
        }
    }
}

TEST_P(Invariant, LinearWithScales) {
  constexpr std::int64_t kTokens = 600, kN = 300;
  for (const DType type : {DType::f8e4m3, DType::i8})
    for (const std::int64_t k : {40, 2100}) {
      const Matrix x = random(dtype(), kTokens, k);
      Matrix w = zeros(type, kN, k), scale = zeros(DType::f32, 1, kN);
      for (std::int64_t i = 0; i < kN * k; ++i)  // no NaN of e4m3
        static_cast<std::uint8_t*>(w.view.data)[i] = std::uint8_t(random_() & 0xf7);
      for (std::int64_t i = 0; i < kN; ++i) scale.view.as<float>()[i] = 0.01f * float(i % 7 + 1);
      const quant::Weight weight{w.view, scale.view};
      Matrix all = zeros(DType::f32, kTokens, kN);
      backends_[0]->run(ops::Linear{x.view, weight, all.view});
      for (const auto& backend : backends_)
        for (const Range rows : {Range{0, 1}, Range{3, 5}, Range{20, 60}, Range{100, 200}}) {
          Matrix some = zeros(DType::f32, rows.size(), kN);
          backend->run(ops::Linear{x.view.rows_of(rows), weight, some.view});
          EXPECT_TRUE(same_bits(some.view, all.view.rows_of(rows)))
              << backend->description() << ", " << name(type) << ", k " << k << ", rows "
              << rows.begin << " to " << rows.end;
        }
    }
}

TEST_P(Invariant, ExpertsAndRoute) {
  constexpr std::int64_t kTokens = 250, kHidden = 96, kInter = 1100, kExperts = 4, kTopK = 2;
  const Matrix x = random(dtype(), kTokens, kHidden);
  const Matrix router = random(dtype(), kExperts, kHidden);
  std::vector<Matrix> weights;
  std::vector<ops::Expert> experts;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    weights.push_back(random(dtype(), kInter, kHidden, 0.2f));
    const View gate = weights.back().view;
    weights.push_back(random(dtype(), kInter, kHidden, 0.2f));
    const View up = weights.back().view;
    weights.push_back(random(dtype(), kHidden, kInter, 0.2f));
    experts.push_back({{gate, {}}, {up, {}}, {weights.back().view, {}}});
  }
  Matrix chosen = zeros(DType::i32, kTokens, kTopK), share = zeros(DType::f32, kTokens, kTopK);
  Matrix all = zeros(DType::f32, kTokens, kHidden);
  backends_[0]->run(ops::Route{x.view, {router.view, {}}, chosen.view, share.view, true});
  backends_[0]->run(ops::ExpertMlp{x.view, chosen.view, share.view, experts, 0, all.view});
  for (const auto& backend : backends_)
    for (const Range rows : {Range{0, 1}, Range{5, 7}, Range{30, 90}, Range{0, kTokens}}) {
      Matrix c = zeros(DType::i32, rows.size(), kTopK), s = zeros(DType::f32, rows.size(), kTopK);
      Matrix y = zeros(DType::f32, rows.size(), kHidden);
      const View part = x.view.rows_of(rows);
      backend->run(ops::Route{part, {router.view, {}}, c.view, s.view, true});
      backend->run(ops::ExpertMlp{part, c.view, s.view, experts, 0, y.view});
      EXPECT_TRUE(same_bits(c.view, chosen.view.rows_of(rows))) << backend->description();
      EXPECT_TRUE(same_bits(s.view, share.view.rows_of(rows))) << backend->description();
      EXPECT_TRUE(same_bits(y.view, all.view.rows_of(rows)))
          << backend->description() << ", rows " << rows.begin << " to " << rows.end;
    }
}

// Every query of a prompt, and the same prompt cut into pieces, with other block sizes and threads.
TEST_P(Invariant, Attention) {
  constexpr std::int64_t kContext = 2200, kHeads = 4, kKvHeads = 2, kDim = 48, kLast = 150;
  const Matrix q = random(dtype(), kContext, kHeads * kDim);
  const Matrix k = random(dtype(), kKvHeads * kContext, kDim);
  const Matrix v = random(dtype(), kKvHeads * kContext, kDim);
  struct Pages {
    Matrix k, v, table;
  };
  const auto pages_of = [&](std::int64_t block_tokens) {
    const std::int64_t blocks = (kContext + block_tokens - 1) / block_tokens;
    Pages p{zeros(dtype(), blocks * kKvHeads * block_tokens, kDim),
            zeros(dtype(), blocks * kKvHeads * block_tokens, kDim),
            {}};
    std::vector<std::int32_t> table;
    for (std::int64_t b = 0; b < blocks; ++b) table.push_back(std::int32_t(blocks - 1 - b));
    for (std::int64_t h = 0; h < kKvHeads; ++h)
      for (std::int64_t i = 0; i < kContext; ++i) {
        const std::int64_t row =
            (table[std::size_t(i / block_tokens)] * kKvHeads + h) * block_tokens + i % block_tokens;
        const std::size_t bytes = kDim * size_of(dtype());
        const std::size_t to = std::size_t(row) * bytes;
        const std::size_t from = std::size_t(h * kContext + i) * bytes;
        std::memcpy(static_cast<char*>(p.k.view.data) + to,
                    static_cast<const char*>(k.view.data) + from, bytes);
        std::memcpy(static_cast<char*>(p.v.view.data) + to,
                    static_cast<const char*>(v.view.data) + from, bytes);
      }
    p.table = ints(table);
    return p;
  };
  const auto attend = [&](ops::Backend& backend, const Pages& p, std::int64_t block_tokens,
                          Range queries, std::int64_t window) {
    Matrix y = zeros(dtype(), queries.size(), kHeads * kDim);
    const Matrix start = ints({0, std::int32_t(queries.size())});
    const Matrix length = ints({std::int32_t(queries.end)});
    backend.run(ops::PagedAttention{q.view.rows_of(queries),
                                    {start.view, length.view, p.table.view},
                                    {p.k.view, p.v.view, kKvHeads, block_tokens},
                                    y.view,
                                    kHeads,
                                    1 / std::sqrt(float(kDim)),
                                    window});
    return y;
  };
  const Pages sixteen = pages_of(16), odd = pages_of(37);
  for (const std::int64_t window : {0, 700}) {
    const Range last{kContext - kLast, kContext};
    const Matrix all = attend(*backends_[0], sixteen, 16, last, window);
    for (const auto& backend : backends_)
      for (const Range queries : {last, Range{last.begin, last.begin + 1}, Range{2111, 2113},
                                  Range{2100, 2177}, Range{kContext - 1, kContext}}) {
        const Matrix y = attend(*backend, odd, 37, queries, window);
        EXPECT_TRUE(same_bits(
            y.view, all.view.rows_of({queries.begin - last.begin, queries.end - last.begin})))
            << backend->description() << ", window " << window << ", queries " << queries.begin
            << " to " << queries.end;
      }
  }
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.push_back(kernels->name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Invariant,
                         testing::Combine(testing::ValuesIn(isas()),
                                          testing::Values(DType::f32, DType::f16, DType::bf16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace ostro::cpu
