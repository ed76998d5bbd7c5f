// PagedAttention: the contract in ops/attention.h, for every backend of this build.
#include "ops/attention.h"

#include "ops/paged.h"
#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct Case {
  std::vector<PagedRequest> requests;
  std::int64_t heads, kv_heads, head_dim, block_tokens, window;
  DType dtype;
  bool e4m3_cache = false, zero_queries = false;
  DType cache() const { return e4m3_cache ? DType::f8e4m3 : dtype; }
};

// A CPU keeps softmax weights in f32, a GPU rounds them where it multiplies.
bool targets_round_weights() { return targets().front().configuration.starts_with("cuda"); }

class Attention {
 public:
  explicit Attention(const Case& c)
      : c_(c),
        pages_(c.requests, c.block_tokens, c.window),
        // A column range of [q | k | v], as in the model.
        qkv_(Matrix(c.dtype, pages_.tokens(), (c.heads + 2 * c.kv_heads) * c.head_dim)),
        k_(pages_.cache(c.cache(), c.kv_heads, c.head_dim, 2, c.block_tokens % 3)),
        v_(pages_.cache(c.cache(), c.kv_heads, c.head_dim, 3, c.block_tokens % 3)) {
    if (c.zero_queries)
      qkv_.floats(std::vector<float>(std::size_t(qkv_.rows() * qkv_.cols())));
    else
      qkv_.random(1);
  }

  Matrix output() const { return {c_.dtype, pages_.tokens(), c_.heads * c_.head_dim, 3}; }

  PagedAttention op(Matrix& y) {
    return {.q = qkv_.view().cols_of({0, c_.heads * c_.head_dim}),
            .requests = pages_.view(),
            .cache = {.k = k_.view(),
                      .v = v_.view(),
                      .kv_heads = c_.kv_heads,
                      .block_tokens = c_.block_tokens},
            .y = y.view(),
            .heads = c_.heads,
            .scale = scale(),
            .window = c_.window};
  }

  // How far an element of y may be off. A score is scale * q . k, so it is off by at most sum_error
  // of that; a softmax weight exp(score - max) is off by that twice over, relatively, and by the
  // rounding of its argument (scores here are below 32) and of exp, together 48 roundings; both
  // sums over the positions add theirs. Weights may be rounded to 16 bits once more, unless they
  // are 1, as those of zero queries. All of it scales sum(p |v|) / sum(p) <= max |v|, sqrt(3)
  // or 1.75.
  double bound(double want) const {
    std::int64_t longest = 1;
    for (const PagedRequest& r : c_.requests) longest = std::max(longest, r.context);
    const double norms = 3.25 * double(c_.head_dim);  // |q| |k|, elements <= sqrt(3), e4m3: 1.75
    const double score_error = sum_error(c_.head_dim, norms * scale());
    const DType weights = c_.e4m3_cache && c_.dtype == DType::bf16 ? DType::f16 : c_.dtype;
    const double relative = 2 * score_error + 48 * kF32 + 2 * sum_error(longest, 1);
    const bool rounds = targets_round_weights() && !c_.zero_queries;
    const double rounded = rounds ? rounding(weights, 1) : 0;
    return (2 * relative + rounded) * 1.75 + two_roundings(c_.dtype, want);
  }

 private:
  float scale() const { return 1 / std::sqrt(float(c_.head_dim)); }

  Case c_;
  Pages pages_;
  Matrix qkv_, k_, v_;
};

void compare_with_reference(const Case& c) {
  SCOPED_TRACE(text("requests ", c.requests.size(), " heads ", c.heads, '/', c.kv_heads,
                    " head_dim ", c.head_dim, " block_tokens ", c.block_tokens, " window ",
                    c.window, ' ', name(c.dtype), " cache ", name(c.cache())));
  Attention attention(c);
  Matrix want = attention.output();
  reference(attention.op(want));
  on_every_target(
      [&](Backend& backend) {
        Matrix y = attention.output();
        backend.run(attention.op(y));
        backend.wait();
        return std::vector<Matrix>{y};
      },
      [&](const std::vector<Matrix>& got) {
        expect_near(got[0], want,
                    [&](std::int64_t t, std::int64_t i) { return attention.bound(want(t, i)); });
      });
}

// Decoding and prefilling together; a request without queries, one without tokens.
const std::vector<PagedRequest> kMixed{{1, 1}, {0, 9}, {5, 5}, {1, 70}, {7, 23}, {0, 0}, {17, 33}};

TEST(PagedAttention, MatchesReferenceForEveryHeadSize) {
  for (DType dtype : kFloats)
    for (std::int64_t head_dim : {1, 2, 8, 15, 16, 17, 24, 32, 64, 80, 96, 128, 160, 256})
      compare_with_reference({kMixed, 4, 2, head_dim, 16, 0, dtype});
}

TEST(PagedAttention, MatchesReferenceForAnE4m3Cache) {
  for (DType dtype : kFloats) {
    for (std::int64_t head_dim : {1, 8, 15, 17, 32, 64, 80, 128})
      compare_with_reference({kMixed, 4, 2, head_dim, 16, 0, dtype, true});
    compare_with_reference({kMixed, 6, 2, 24, 7, 15, dtype, true});
    compare_with_reference({{{1, 300}, {9, 40}}, 32, 8, 128, 16, 0, dtype, true});
    compare_with_reference({{{1, 2600}}, 2, 1, 32, 16, 1500, dtype, true});
  }
}

// What a GPU or a CPU caches of a NaN must not look like a number.
TEST(PagedAttention, KeepsANanOfAnE4m3Cache) {
  for (DType dtype : kFloats)
    for (bool in_key : {true, false}) {
      SCOPED_TRACE(text(name(dtype), in_key ? " key" : " value"));
      Matrix q = Matrix(dtype, 1, 32).random(1);
      Matrix k = Matrix(DType::f8e4m3, 16, 32).random(2),
             v = Matrix(DType::f8e4m3, 16, 32).random(3);
      (in_key ? k : v).set(1, 5, std::nanf(""));
      Matrix start = Matrix(DType::i32, 1, 2).integers({0, 1});
      Matrix length = Matrix(DType::i32, 1, 1).integers({3});
      Matrix table = Matrix(DType::i32, 1, 1).integers({0});
      on_every_target(
          [&](Backend& backend) {
            Matrix y(dtype, 1, 32);
            backend.run(PagedAttention{
                .q = q.view(),
                .requests = {start.view(), length.view(), table.view()},
                .cache = {.k = k.view(), .v = v.view(), .kv_heads = 1, .block_tokens = 16},
                .y = y.view(),
                .heads = 1,
                .scale = 0.2f});
            backend.wait();
            return std::vector<Matrix>{y};
          },
          [&](const std::vector<Matrix>& got) { EXPECT_TRUE(std::isnan(got[0](0, 5))); });
    }
}

TEST(PagedAttention, MatchesReferenceForEveryGroup) {
  for (DType dtype : kFloats)
    for (const auto& [heads, kv_heads] : {std::pair{1, 1},
                                          {2, 2},
                                          {3, 1},
                                          {6, 2},
                                          {4, 1},
                                          {5, 1},
                                          {6, 1},
                                          {8, 1},
                                          {14, 2},
                                          {16, 1},
                                          {71, 1}})
      compare_with_reference({kMixed, heads, kv_heads, 32, 16, 0, dtype});
}

TEST(PagedAttention, MatchesReferenceForEveryBlockAndWindow) {
  for (DType dtype : kFloats)
    for (std::int64_t block_tokens : {1, 7, 8, 16, 64, 128})
      for (std::int64_t window : {0, 1, 2, 8, 15, 16, 17, 40, 1000})
        compare_with_reference({kMixed, 4, 2, 24, block_tokens, window, dtype});
}

TEST(PagedAttention, MatchesReferenceAroundEveryTileOfPositions) {
  for (DType dtype : kFloats)
    for (std::int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129})
      compare_with_reference({{{n, n}, {1, n}, {2, n + 1}}, 2, 1, 32, 16, 0, dtype});
}

TEST(PagedAttention, MatchesReferenceAtMixtralsSize) {
  for (DType dtype : kFloats) {
    compare_with_reference({{{1, 300}, {9, 40}}, 32, 8, 128, 16, 0, dtype});
    compare_with_reference({{{1, 1500}}, 4, 1, 128, 64, 1024, dtype});
  }
}

// Prompts of many rows, for which a GPU has a kernel of its own.
TEST(PagedAttention, MatchesReferenceForLongPrompts) {
  for (DType dtype : {DType::f16, DType::bf16})
    for (bool e4m3 : {false, true}) {
      compare_with_reference({{{256, 256}, {1, 3}}, 4, 1, 128, 64, 0, dtype, e4m3});
      compare_with_reference({{{133, 250}, {65, 65}}, 6, 1, 64, 16, 100, dtype, e4m3});
      compare_with_reference({{{211, 211}}, 2, 2, 128, 7, 0, dtype, e4m3});
    }
  compare_with_reference({{{330, 330}}, 48, 48, 64, 16, 0, DType::bf16});
}

// Every position weighs the same, so one that is missed or seen too early shows.
TEST(PagedAttention, OfZeroQueriesIsTheMean) {
  for (DType dtype : kFloats)
    for (bool e4m3 : {false, true})
      for (std::int64_t head_dim : {32, 64, 128}) {
        compare_with_reference({kMixed, 6, 1, head_dim, 16, 0, dtype, e4m3, true});
        compare_with_reference({{{1, 900}, {1, 257}}, 8, 2, head_dim, 16, 0, dtype, e4m3, true});
        compare_with_reference({{{70, 700}, {9, 40}}, 4, 1, head_dim, 64, 300, dtype, e4m3, true});
        compare_with_reference({{{200, 256}}, 4, 1, head_dim, 64, 0, dtype, e4m3, true});
      }
}

TEST(PagedAttention, OfNoTokensDoesNothing) {
  for (const std::vector<PagedRequest>& requests :
       {std::vector<PagedRequest>{}, {{0, 0}}, {{0, 5}, {0, 3}}})
    compare_with_reference({requests, 4, 2, 32, 16, 0, DType::bf16});
}

// Long enough for threads to share the positions of one query, next to requests that are not.
TEST(PagedAttention, MatchesReferenceForLongContexts) {
  for (DType dtype : kFloats)
    for (std::int64_t window : {0, 700, 1024, 1500})
      for (std::int64_t context : {1023, 1024, 1025, 2047, 2048, 2600}) {
        compare_with_reference({{{1, context}}, 2, 1, 32, 16, window, dtype});
        compare_with_reference({{{3, context}, {1, 7}}, 3, 1, 24, 64, window, dtype});
      }
}

// With one position to see, the softmax is 1 and the result is its value.
TEST(PagedAttention, OfOnePositionIsItsValue) {
  for (DType dtype : kFloats) {
    const Case c{{{1, 1}, {3, 20}}, 4, 2, 24, 8, 1, dtype};
    Pages pages(c.requests, c.block_tokens, c.window);
    const Matrix v = pages.cache(dtype, 2, 24, 3);
    Attention attention(c);
    const auto expect = [&](const std::vector<Matrix>& got) {
      const std::vector<std::pair<std::int64_t, std::int64_t>> seen{
          {0, 0}, {1, 17}, {1, 18}, {1, 19}};
      for (std::int64_t t = 0; t < 4; ++t)
        for (std::int64_t h = 0; h < 4; ++h)
          for (std::int64_t i = 0; i < 24; ++i) {
            const auto [r, position] = seen[std::size_t(t)];
            ASSERT_EQ(got[0](t, h * 24 + i), v(pages.cache_row(r, position, h / 2, 2), i))
                << t << ' ' << h << ' ' << i;
          }
    };
    Matrix y = attention.output();
    reference(attention.op(y));
    expect({y});
    on_every_target(
        [&](Backend& backend) {
          Matrix out = attention.output();
          backend.run(attention.op(out));
          backend.wait();
          return std::vector<Matrix>{out};
        },
        expect);
  }
}

// Two positions whose scores differ by ln 3 weigh 1/4 and 3/4.
TEST(PagedAttention, OfKnownWeights) {
  Matrix q = Matrix(DType::f32, 1, 2).floats({2, 0});
  Matrix k = Matrix(DType::f32, 4, 2).floats({0, 0, 0, 0, 5, 9, 5 + std::log(3.0f), -9});
  Matrix v = Matrix(DType::f32, 4, 2).floats({0, 0, 0, 0, 1, 10, 5, 20});
  Matrix query_start = Matrix(DType::i32, 1, 2).integers({0, 1});
  Matrix context_len = Matrix(DType::i32, 1, 1).integers({2});
  Matrix block_table = Matrix(DType::i32, 1, 1).integers({1});
  Matrix y(DType::f32, 1, 2);
  reference({.q = q.view(),
             .requests = {.query_start = query_start.view(),
                          .context_len = context_len.view(),
                          .block_table = block_table.view()},
             .cache = {.k = k.view(), .v = v.view(), .kv_heads = 1, .block_tokens = 2},
             .y = y.view(),
             .heads = 1,
             .scale = 0.5f,
             .window = 0});
  EXPECT_NEAR(y(0, 0), 4, 1e-5);
  EXPECT_NEAR(y(0, 1), 17.5, 1e-5);
}

// exp would overflow without the maximum, which here comes last, first or in the middle.
TEST(PagedAttention, HasNoLimitOnScores) {
  const std::int64_t n = 150;
  for (std::int64_t peak : {std::int64_t{0}, std::int64_t{70}, n - 1}) {
    Pages pages({{1, n}}, 16);
    Matrix q = Matrix(DType::f32, 1, 8);
    for (std::int64_t i = 0; i < 8; ++i) q.set(0, i, 100);
    Matrix k = pages.cache(DType::f32, 1, 8, 2), v = pages.cache(DType::f32, 1, 8, 3);
    for (std::int64_t i = 0; i < 8; ++i) k.set(pages.cache_row(0, peak, 0, 1), i, 10);
    on_every_target(
        [&](Backend& backend) {
          Matrix y(DType::f32, 1, 8);
          backend.run(PagedAttention{
              .q = q.view(),
              .requests = pages.view(),
              .cache = {.k = k.view(), .v = v.view(), .kv_heads = 1, .block_tokens = 16},
              .y = y.view(),
              .heads = 1,
              .scale = 1,
              .window = 0});
          backend.wait();
          return std::vector<Matrix>{y};
        },
        [&](const std::vector<Matrix>& got) {
          for (std::int64_t i = 0; i < 8; ++i)
            ASSERT_EQ(got[0](0, i), v(pages.cache_row(0, peak, 0, 1), i)) << "peak at " << peak;
        });
  }
}

// ---- batch.invariant ----

// The queries of a prompt, with one cache of all its positions, run in chunks.
class Prompt {
 public:
  Prompt(DType dtype, std::int64_t length, std::int64_t head_dim, std::int64_t block_tokens,
         std::int64_t window, bool e4m3_cache = false, std::int64_t kv_heads = 2)
      : kv_heads_(kv_heads),
        block_tokens_(block_tokens),
        window_(window),
        head_dim_(head_dim),
        pages_({{length, length}}, block_tokens),
        q_(Matrix(dtype, length, 3 * kv_heads * head_dim).random(1)),
        k_(pages_.cache(e4m3_cache ? DType::f8e4m3 : dtype, kv_heads, head_dim, 2)),
        v_(pages_.cache(e4m3_cache ? DType::f8e4m3 : dtype, kv_heads, head_dim, 3)) {}

  // Keys become longer with their position, so that the largest score grows on and on.
  void grow_keys() {
    for (std::int64_t at = 0; at < q_.rows() * kv_heads_; ++at) {
      const std::int64_t p = at / kv_heads_,
                         row = pages_.cache_row(0, p, at % kv_heads_, kv_heads_);
      for (std::int64_t i = 0; i < head_dim_; ++i) k_.set(row, i, k_(row, i) * float(p) / 8);
    }
  }
  Matrix run(Backend& backend, const std::vector<std::int64_t>& chunks) {
    Matrix y(q_.dtype(), q_.rows(), q_.cols());
    std::int64_t done = 0;
    for (std::int64_t queries : chunks) {
      const Range rows{done, done + queries};
      run(backend, {rows}, y.view().rows_of(rows));
      done = rows.end;
    }
    OSTRO_CHECK(done == q_.rows(), "chunks of ", done, " tokens");
    return y;
  }

  // Several ranges of the prompt's queries as the requests of one step, their rows in this order.
  void run(Backend& backend, const std::vector<Range>& ranges, const View& y) {
    const std::int64_t count = std::int64_t(ranges.size());
    Matrix query_start(DType::i32, 1, count + 1), context_len(DType::i32, 1, count);
    Matrix block_table(DType::i32, count, pages_.view().block_table.cols);
    Matrix q(q_.dtype(), y.rows, q_.cols());
    query_start.set_integer(0, 0, 0);
    std::int64_t row = 0;
    for (std::int64_t r = 0; r < count; ++r) {
      const Range range = ranges[std::size_t(r)];
      for (std::int64_t t = range.begin; t < range.end; ++t, ++row)
        std::memcpy(q.view().rows_of({row, row + 1}).data, q_.view().rows_of({t, t + 1}).data,
                    q_.row_bits(t).size());
      query_start.set_integer(0, r + 1, std::int32_t(row));
      context_len.set_integer(0, r, std::int32_t(range.end));
      for (std::int64_t i = 0; i < block_table.cols(); ++i)
        block_table.set_integer(r, i, pages_.view().block_table.as<const std::int32_t>()[i]);
    }
    backend.run(PagedAttention{.q = q.view(),
                               .requests = {.query_start = query_start.view(),
                                            .context_len = context_len.view(),
                                            .block_table = block_table.view()},
                               .cache = {.k = k_.view(),
                                         .v = v_.view(),
                                         .kv_heads = kv_heads_,
                                         .block_tokens = block_tokens_},
                               .y = y,
                               .heads = 3 * kv_heads_,
                               .scale = 1 / std::sqrt(float(head_dim_)),
                               .window = window_});
    backend.wait();
  }

 private:
  std::int64_t kv_heads_, block_tokens_, window_, head_dim_;
  Pages pages_;
  Matrix q_, k_, v_;
};

TEST(PagedAttention, DoesNotDependOnChunksOrBlocks) {
  constexpr std::int64_t kLength = 210;
  const std::vector<std::int64_t> one_by_one(kLength, 1);
  for (DType dtype : kFloats)
    for (const auto& [head_dim, window] : {std::pair{32, 0}, {80, 0}, {128, 50}})
      for (const Target& target : targets()) {
        SCOPED_TRACE(
            text(target.name(), ' ', name(dtype), " head_dim ", head_dim, " window ", window));
        const auto backend = target.make();
        const Matrix whole = Prompt(dtype, kLength, head_dim, 16, window).run(*backend, {kLength});
        for (std::int64_t block_tokens : {8, 16, 64}) {
          SCOPED_TRACE(text("block_tokens ", block_tokens));
          Prompt prompt(dtype, kLength, head_dim, block_tokens, window);
          for (const std::vector<std::int64_t>& chunks : {std::vector<std::int64_t>{kLength},
                                                          {64, 64, 64, 18},
                                                          {1, 2, 3, 7, 16, 33, 64, 84},
                                                          {200, 10},
                                                          one_by_one}) {
            SCOPED_TRACE(text("chunks ", chunks.size()));
            expect_same_rows(prompt.run(*backend, chunks), whole, 0);
            if (::testing::Test::HasFailure()) return;
          }
        }
      }
}

TEST(PagedAttention, DoesNotDependOnChunksOfALongContext) {
  constexpr std::int64_t kLength = 1300;
  for (DType dtype : {DType::f32, DType::bf16})
    for (std::int64_t window : {0, 1100})
      for (const Target& target : targets()) {
        SCOPED_TRACE(text(target.name(), ' ', name(dtype), " window ", window));
        const auto backend = target.make();
        Prompt prompt(dtype, kLength, 24, 64, window);
        const Matrix whole = prompt.run(*backend, {kLength});
        for (const std::vector<std::int64_t>& chunks :
             {std::vector<std::int64_t>{1000, 23, 1, 1, 275},
              {1021, 1, 1, 1, 1, 1, 274},
              {1, 1299},
              {1299, 1}}) {
          SCOPED_TRACE(text("chunks ", chunks.size()));
          expect_same_rows(prompt.run(*backend, chunks), whole, 0);
          if (::testing::Test::HasFailure()) return;
        }
      }
}

// A GPU computes so large a prompt with one kernel, its chunks with others.
TEST(PagedAttention, DoesNotDependOnChunksOfALargePrompt) {
  constexpr std::int64_t kLength = 530, kKvHeads = 12;
  using Kind = std::tuple<DType, std::int64_t, std::int64_t, bool>;
  for (const auto& [dtype, head_dim, window, e4m3] :
       {Kind{DType::f16, 64, 300, false}, Kind{DType::f16, 128, 0, true},
        Kind{DType::bf16, 64, 300, true}, Kind{DType::bf16, 128, 0, false}})
    for (const Target& target : targets())
      for (const bool grows : {false, true}) {
        SCOPED_TRACE(text(target.name(), ' ', name(dtype), " head_dim ", head_dim, " window ",
                          window, e4m3 ? " e4m3" : "", grows ? " growing keys" : ""));
        Prompt prompt(dtype, kLength, head_dim, 64, window, e4m3, kKvHeads);
        const auto backend = target.make();
        if (grows) prompt.grow_keys();
        const Matrix whole = prompt.run(*backend, {kLength});
        expect_same_rows(prompt.run(*backend, {201, 1, 1, 1, 30, 66, 228, 1, 1}), whole, 0);
        if (::testing::Test::HasFailure()) return;
      }
}

TEST(PagedAttention, DoesNotDependOnTheOtherRequests) {
  constexpr std::int64_t kLength = 140;
  const std::vector<Range> ranges{{139, 140}, {0, 33}, {50, 51}, {60, 60}, {0, 1}, {99, 140}};
  for (DType dtype : kFloats)
    for (const Target& target : targets()) {
      SCOPED_TRACE(text(target.name(), ' ', name(dtype)));
      const auto backend = target.make();
      Prompt prompt(dtype, kLength, 64, 16, 0);
      const Matrix whole = prompt.run(*backend, {kLength});
      std::int64_t rows = 0;
      for (const Range& range : ranges) rows += range.size();
      Matrix y(dtype, rows, whole.cols());
      prompt.run(*backend, ranges, y.view());
      std::int64_t row = 0;
      for (const Range& range : ranges)
        for (std::int64_t t = range.begin; t < range.end; ++t, ++row)
          ASSERT_EQ(y.row_bits(row) == whole.row_bits(t), true)
              << "position " << t << " as row " << row;
    }
}

// Keys and values of NaN and infinity at one position: queries before it get their bits without,
// those that see it get NaN where the values have it.
TEST(PagedAttention, LaterNaNsReachNoEarlierQuery) {
  for (DType dtype : kFloats)
    for (std::int64_t window : {0, 20})
      for (std::int64_t odd_position : {3, 60, 66, 129}) {
        SCOPED_TRACE(text(name(dtype), " window ", window, " position ", odd_position));
        Pages pages({{140, 140}}, 16);
        Matrix q = Matrix(dtype, 140, 4 * 64).random(1);
        const Matrix k = pages.cache(dtype, 2, 64, 2), v = pages.cache(dtype, 2, 64, 3);
        Matrix odd_v = v;
        for (std::int64_t h = 0; h < 2; ++h) {
          const std::int64_t row = pages.cache_row(0, odd_position, h, 2);
          odd_v.set(row, 5, std::numeric_limits<float>::quiet_NaN());
          odd_v.set(row, 40, std::numeric_limits<float>::infinity());
        }
        on_every_target(
            [&](Backend& backend) {
              const auto run = [&](Matrix values) {
                Matrix keys = k, y(dtype, 140, 4 * 64);
                backend.run(PagedAttention{.q = q.view(),
                                           .requests = pages.view(),
                                           .cache = {.k = keys.view(),
                                                     .v = values.view(),
                                                     .kv_heads = 2,
                                                     .block_tokens = 16},
                                           .y = y.view(),
                                           .heads = 4,
                                           .scale = 0.125f,
                                           .window = window});
                backend.wait();
                return y;
              };
              return std::vector<Matrix>{run(odd_v), run(v)};
            },
            [&](const std::vector<Matrix>& got) {
              for (std::int64_t t = 0; t < 140; ++t) {
                const bool sees = t >= odd_position && (window == 0 || t - window < odd_position);
                for (std::int64_t i = 0; i < 4 * 64; ++i) {
                  const bool odd = sees && (i % 64 == 5 || i % 64 == 40);
                  ASSERT_EQ(std::isfinite(got[0](t, i)), !odd) << t << ' ' << i;
                  if (!odd) {
                    ASSERT_EQ(got[0](t, i), got[1](t, i)) << t << ' ' << i;
                  }
                }
              }
            });
      }
}

// A decode step padded with tokens of no request, and with requests of no token and no block.
TEST(PagedAttention, LeavesPaddingAlone) {
  for (DType dtype : kFloats)
    for (const std::vector<PagedRequest>& live :
         {std::vector<PagedRequest>{{1, 40}, {1, 700}, {1, 1}}, {{1, 5}}}) {
      const auto tokens = std::int64_t(live.size()), padding = std::int64_t{5};
      std::vector<PagedRequest> requests = live;
      requests.resize(std::size_t(tokens + padding), {0, 0});
      Pages pages(requests, 16);
      Matrix q = Matrix(dtype, tokens + padding, 4 * 64).random(1);
      Matrix k = pages.cache(dtype, 2, 64, 2), v = pages.cache(dtype, 2, 64, 3);
      on_every_target(
          [&](Backend& backend) {
            const auto run = [&](std::int64_t rows) {
              Matrix y(dtype, rows, 4 * 64);
              backend.run(PagedAttention{
                  .q = q.view().rows_of({0, rows}),
                  .requests = pages.view(),
                  .cache = {.k = k.view(), .v = v.view(), .kv_heads = 2, .block_tokens = 16},
                  .y = y.view(),
                  .heads = 4,
                  .scale = 0.125f,
                  .window = 0});
              backend.wait();
              return y;
            };
            return std::vector<Matrix>{run(tokens + padding), run(tokens)};
          },
          [&](const std::vector<Matrix>& got) {
            const Matrix untouched(dtype, 1, 4 * 64);
            for (std::int64_t t = 0; t < tokens + padding; ++t)
              ASSERT_EQ(
                  got[0].row_bits(t) == (t < tokens ? got[1].row_bits(t) : untouched.row_bits(0)),
                  true)
                  << t;
          });
    }
}

TEST(PagedAttention, RefusesWhatTheContractDoes) {
  Attention attention({{{2, 2}}, 4, 2, 8, 16, 0, DType::bf16});
  Matrix y = attention.output();
  const PagedAttention good = attention.op(y);
  check(good);
  PagedAttention op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.q.cols = 31;
  refuses("PagedAttention: q is bf16 [2,31], wanted [2,32]");
  op.q.dtype = DType::f32;
  refuses("PagedAttention: q is f32 [2,32], wanted bf16");
  op.y.rows = 1;
  refuses("PagedAttention: y is bf16 [1,32], wanted [2,32]");
  op.y.dtype = DType::f32;
  refuses("PagedAttention: y is f32 [2,32], wanted bf16");
  op.y.data = op.q.data;
  refuses("PagedAttention: y is the memory of q");
  op.scale = 0;
  refuses("PagedAttention: scale is 0, wanted > 0");
  op.window = -1;
  refuses("PagedAttention: window is -1, wanted >= 0");
  op.heads = 5;
  refuses("PagedAttention: 5 heads share 2 kv_heads, wanted a multiple");
  op.cache.kv_heads = 0;
  refuses("PagedAttention: 4 heads share 0 kv_heads, wanted a multiple");
  op.cache.block_tokens = 24;
  refuses("PagedAttention: cache.k is bf16 [128,8], wanted rows in blocks of 2 kv_heads x 24");
  op.requests.context_len.cols = 2;
  refuses("PagedAttention: query_start is i32 [1,2], wanted [1,3]");
  op.y.device = Device::cuda;
  refuses("PagedAttention: y is on cuda, wanted cpu");
  op.cache.k.dtype = op.cache.v.dtype = DType::f8e4m3;
  check(op);
  op.y.dtype = DType::f8e4m3;
  op.cache.k.dtype = op.cache.v.dtype = DType::f8e4m3;
  refuses("PagedAttention: y is f8e4m3 [2,32], wanted bf16");
}

}  // namespace
}  // namespace ostro::ops
