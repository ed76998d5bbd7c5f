// RotaryAngles and RotaryAppend: the contracts in ops/attention.h, for every backend of this build.
#include "ops/attention.h"
#include "ops/paged.h"
#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

// ---- RotaryAngles ----

// Inverse frequencies base^(-2i / head_dim), one base a table.
Matrix inverse_frequencies(std::int64_t half, const std::vector<double>& bases) {
  Matrix m(DType::f32, std::int64_t(bases.size()), half);
  for (std::int64_t b = 0; b < m.rows(); ++b)
    for (std::int64_t i = 0; i < half; ++i)
      m.set(b, i, float(std::pow(bases[std::size_t(b)], -double(i) / double(half))));
  return m;
}

TEST(RotaryAngles, AreWithinAnUlpOfTheExactCosine) {
  for (std::int64_t head_dim : {2, 6, 24, 32, 64, 80, 96, 128})
    for (std::int64_t tokens : {0, 1, 5, 33}) {
      SCOPED_TRACE(text("head_dim ", head_dim, " tokens ", tokens));
      const std::int64_t half = head_dim / 2;
      Matrix inv_freq = inverse_frequencies(half, {10000, 1000000});
      Matrix positions(DType::i32, 1, tokens), table(DType::i32, 1, tokens);
      for (std::int64_t t = 0; t < tokens; ++t) {
        positions.set_integer(0, t, std::int32_t(t == 4 ? 131071 : t * t * 31));
        table.set_integer(0, t, std::int32_t(t % 2));
      }
      const auto op = [&](Matrix& cos_sin) {
        return RotaryAngles{.positions = positions.view(),
                            .table = table.view(),
                            .inv_freq = inv_freq.view(),
                            .cos_sin = cos_sin.view()};
      };
      Matrix want(DType::f32, tokens, head_dim, 3);
      reference(op(want));
      on_every_target(
          [&](Backend& backend) {
            Matrix cos_sin(DType::f32, tokens, head_dim, 3);
            backend.run(op(cos_sin));
            backend.wait();
            return std::vector<Matrix>{cos_sin};
          },
          [&](const std::vector<Matrix>& got) {
            // The contract's ulp is at most 2^-23 relative; the reference adds half of one.
            expect_near(got[0], want, [&](std::int64_t t, std::int64_t i) {
              return two_roundings(DType::f32, want(t, i)) + rounding(DType::f32, want(t, i));
            });
          });
    }
}

TEST(RotaryAngles, OfKnownAngles) {
  Matrix positions = Matrix(DType::i32, 1, 3).integers({0, 1, 2});
  Matrix table = Matrix(DType::i32, 1, 3).integers({1, 0, 1});
  Matrix inv_freq = Matrix(DType::f32, 2, 2).floats({1, 0, 1.57079633f, 0.5f});
  Matrix cos_sin(DType::f32, 3, 4);
  const RotaryAngles op{.positions = positions.view(),
                        .table = table.view(),
                        .inv_freq = inv_freq.view(),
                        .cos_sin = cos_sin.view()};
  reference(op);
  const std::vector<float> want{1,           1,           0,           0,  //
                                0.54030231f, 1,           0.84147098f, 0,  //
                                -1,          0.54030231f, 0,           0.84147098f};
  for (std::int64_t i = 0; i < 12; ++i)
    EXPECT_NEAR(cos_sin(i / 4, i % 4), want[std::size_t(i)], 2e-7) << i;
  table.set_integer(0, 2, 2);
  expect_error<InvalidArgument>([&] { reference(op); },
                                "RotaryAngles: table[2] is 2, inv_freq is f32 [2,2]");
}

TEST(RotaryAngles, RefusesWhatTheContractDoes) {
  Matrix positions(DType::i32, 1, 3), table(DType::i32, 1, 3), inv_freq(DType::f32, 2, 4),
      cos_sin(DType::f32, 3, 8);
  const RotaryAngles good{.positions = positions.view(),
                          .table = table.view(),
                          .inv_freq = inv_freq.view(),
                          .cos_sin = cos_sin.view()};
  check(good);
  RotaryAngles op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.table.cols = 2;
  refuses("RotaryAngles: table is i32 [1,2], wanted [1,3]");
  op.positions.dtype = DType::f32;
  refuses("RotaryAngles: positions is f32 [1,3], wanted i32");
  op.inv_freq.dtype = DType::bf16;
  refuses("RotaryAngles: inv_freq is bf16 [2,4], wanted f32");
  op.cos_sin.cols = 7;
  refuses("RotaryAngles: cos_sin is f32 [3,7], wanted [3,8]");
  op.table.device = Device::cuda;
  refuses("RotaryAngles: table is on cuda, wanted cpu");
}

// ---- RotaryAppend ----

struct AppendCase {
  std::vector<PagedRequest> requests;
  std::int64_t heads, kv_heads, head_dim, block_tokens;
  DType dtype;
  bool e4m3_cache = false;

  DType cache() const { return e4m3_cache ? DType::f8e4m3 : dtype; }
};

class Append {
 public:
  explicit Append(const AppendCase& c)
      : c_(c),
        pages(c.requests, c.block_tokens),
        qkv(Matrix(c.dtype, pages.tokens(), (c.heads + 2 * c.kv_heads) * c.head_dim, 5).random(1)),
        cos_sin(DType::f32, pages.tokens(), c.head_dim, 2),
        k(c.cache(), pages.cache_rows(c.kv_heads), c.head_dim, c.block_tokens % 3),
        v(c.cache(), pages.cache_rows(c.kv_heads), c.head_dim, c.block_tokens % 3) {
    for (std::int64_t t = 0; t < pages.tokens(); ++t)
      for (std::int64_t i = 0; i < c.head_dim / 2; ++i) {
        const float angle = float(t * 3 + 1) * std::pow(0.7f, float(i % 50));
        cos_sin.set(t, i, std::cos(angle));
        cos_sin.set(t, c.head_dim / 2 + i, std::sin(angle));
      }
  }

  RotaryAppend op() {
    return {.qkv = qkv.view(),
            .cos_sin = cos_sin.view(),
            .requests = pages.view(),
            .cache = {.k = k.view(),
                      .v = v.view(),
                      .kv_heads = c_.kv_heads,
                      .block_tokens = c_.block_tokens},
            .heads = c_.heads};
  }

 private:
  AppendCase c_;

 public:
  Pages pages;
  Matrix qkv, cos_sin, k, v;
};

void compare_append(const AppendCase& c) {
  SCOPED_TRACE(text("requests ", c.requests.size(), " heads ", c.heads, '/', c.kv_heads,
                    " head_dim ", c.head_dim, " block_tokens ", c.block_tokens, ' ', name(c.dtype),
                    " cache ", name(c.cache())));
  const Append start(c);
  Append want = start;
  reference(want.op());
  // Two products and a sum of elements of |x| <= sqrt(3), |cos| <= 1.
  const auto bound = [&](const Matrix& m) {
    return [&](std::int64_t r, std::int64_t i) {
      return 3 * kF32 * 2 * std::sqrt(3.0) + two_roundings(m.dtype(), m(r, i));
    };
  };
  on_every_target(
      [&](Backend& backend) {
        Append got = start;
        backend.run(got.op());
        backend.wait();
        return std::vector<Matrix>{got.qkv, got.k, got.v};
      },
      [&](const std::vector<Matrix>& got) {
        expect_near(got[0], want.qkv, bound(want.qkv));
        // Keys and values of qkv stay as they were.
        const std::int64_t q = c.heads * c.head_dim;
        for (std::int64_t t = 0; t < want.qkv.rows(); ++t)
          for (std::int64_t i = q; i < want.qkv.cols(); ++i)
            ASSERT_EQ(got[0](t, i), start.qkv(t, i)) << t << ' ' << i;
        // Values are copied; the slots of other tokens stay as they were (NaN).
        for (std::int64_t row = 0; row < want.v.rows(); ++row) {
          ASSERT_EQ(got[2].row_bits(row) == want.v.row_bits(row), true) << "value row " << row;
          if (want.k.row_bits(row) == start.k.row_bits(row)) {
            ASSERT_EQ(got[1].row_bits(row) == start.k.row_bits(row), true) << "key row " << row;
          } else {
            for (std::int64_t i = 0; i < c.head_dim; ++i)
              ASSERT_NEAR(got[1](row, i), want.k(row, i), bound(want.k)(row, i)) << row << ' ' << i;
          }
        }
      });
}

const std::vector<PagedRequest> kMixed{{1, 1}, {0, 9}, {5, 5}, {1, 40}, {7, 23}, {0, 0}, {17, 33}};

TEST(RotaryAppend, MatchesReference) {
  for (DType dtype : kFloats) {
    for (std::int64_t head_dim : {2, 6, 24, 32, 64, 80, 96, 128, 160})
      compare_append({kMixed, 4, 2, head_dim, 16, dtype});
    for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {3, 1}, {6, 3}, {8, 1}, {12, 2}, {5, 5}})
      compare_append({kMixed, heads, kv_heads, 32, 8, dtype});
    for (std::int64_t block_tokens : {1, 7, 64})
      compare_append({kMixed, 4, 2, 32, block_tokens, dtype});
    compare_append({kMixed, 32, 8, 128, 16, dtype});
    compare_append({{}, 4, 2, 32, 16, dtype});
    compare_append({{{0, 5}}, 4, 2, 32, 16, dtype});
    compare_append({{{1, 100}}, 4, 2, 32, 16, dtype});
    for (std::int64_t head_dim : {2, 6, 24, 80, 128})
      compare_append({kMixed, 6, 2, head_dim, 16, dtype, true});
  }
}

TEST(RotaryAppend, TokensDoNotDependOnTheBatch) {
  for (DType dtype : kFloats)
    for (const Target& target : targets()) {
      SCOPED_TRACE(text(target.name(), ' ', name(dtype)));
      const auto backend = target.make();
      const auto run = [&](const std::vector<PagedRequest>& requests) {
        Append a({requests, 4, 2, 80, 16, dtype});
        backend->run(a.op());
        backend->wait();
        return a;
      };
      const Append whole = run({{kBatchRows, kBatchRows}});
      for (std::int64_t n : kBatches) {
        const Append part = run({{n, n}});
        expect_same_rows(part.qkv, whole.qkv, 0);
        for (std::int64_t p = 0; p < n; ++p)
          for (std::int64_t h = 0; h < 2; ++h)
            ASSERT_EQ(part.k.row_bits(part.pages.cache_row(0, p, h, 2)) ==
                          whole.k.row_bits(whole.pages.cache_row(0, p, h, 2)),
                      true)
                << "position " << p << " of " << n;
      }
    }
}

// Position 2 in a table {4, 1} of blocks of 2: its block is 1, slot 0. By 90 degrees (a, b) becomes
// (-b, a).
TEST(RotaryAppend, ByARightAngle) {
  Matrix qkv = Matrix(DType::f32, 1, 16)
                   .floats({1, 2, 3, 4, 5, 6, 7, 8,  // two query heads
                            10, 20, 30, 40, -1, -2, -3, -4});
  Matrix cos_sin = Matrix(DType::f32, 1, 4).floats({0, 1, 1, 0});  // 90 and 0 degrees
  Matrix query_start = Matrix(DType::i32, 1, 2).integers({0, 1});
  Matrix context_len = Matrix(DType::i32, 1, 1).integers({3});
  Matrix block_table = Matrix(DType::i32, 1, 2).integers({4, 1});
  Matrix k(DType::f32, 10, 4), v(DType::f32, 10, 4);
  const RotaryAppend op{.qkv = qkv.view(),
                        .cos_sin = cos_sin.view(),
                        .requests = {.query_start = query_start.view(),
                                     .context_len = context_len.view(),
                                     .block_table = block_table.view()},
                        .cache = {.k = k.view(), .v = v.view(), .kv_heads = 1, .block_tokens = 2},
                        .heads = 2};
  reference(op);
  expect_equal(qkv, Matrix(DType::f32, 1, 16)
                        .floats({-3, 2, 1, 4, -7, 6, 5, 8,  //
                                 10, 20, 30, 40, -1, -2, -3, -4}));
  Matrix want_k(DType::f32, 10, 4), want_v(DType::f32, 10, 4);
  for (std::int64_t i = 0; i < 4; ++i) {
    want_k.set(2, i, std::vector<float>{-30, 20, 10, 40}[std::size_t(i)]);
    want_v.set(2, i, float(-1 - i));
  }
  expect_equal(k, want_k);
  expect_equal(v, want_v);

  block_table.set_integer(0, 1, -1);
  expect_error<InvalidArgument>([&] { reference(op); },
                                "request 0 has block -1 of 5 for position 2");
  block_table.set_integer(0, 1, 5);
  expect_error<InvalidArgument>([&] { reference(op); },
                                "request 0 has block 5 of 5 for position 2");
  context_len.set_integer(0, 0, 0);
  expect_error<InvalidArgument>([&] { reference(op); },
                                "request 0 has the rows [0,1) and 0 tokens");
  context_len.set_integer(0, 0, 3);
  query_start.set_integer(0, 1, 2);
  expect_error<InvalidArgument>([&] { reference(op); }, "the requests have 2 rows of 1 tokens");
}

// A decode step padded with tokens of no request, and with requests of no token and no block.
TEST(RotaryAppend, LeavesPaddingAlone) {
  for (DType dtype : kFloats) {
    const std::int64_t tokens = 2, padding = 70;
    std::vector<PagedRequest> requests = {{1, 9}, {1, 4}};
    requests.resize(std::size_t(tokens + padding), {0, 0});
    Pages pages(requests, 8);
    const Matrix before = Matrix(dtype, tokens + padding, 4 * 16).random(1);
    Matrix cos_sin = Matrix(DType::f32, tokens + padding, 16).random(2);
    on_every_target(
        [&](Backend& backend) {
          std::vector<Matrix> results;
          for (const std::int64_t rows : {tokens + padding, tokens}) {
            Matrix qkv = before, k(dtype, pages.cache_rows(1), 16),
                   v(dtype, pages.cache_rows(1), 16);
            backend.run(RotaryAppend{
                .qkv = qkv.view().rows_of({0, rows}),
                .cos_sin = cos_sin.view().rows_of({0, rows}),
                .requests = pages.view(),
                .cache = {.k = k.view(), .v = v.view(), .kv_heads = 1, .block_tokens = 8},
                .heads = 2});
            backend.wait();
            for (const Matrix& m : {qkv, k, v}) results.push_back(m);
          }
          return results;
        },
        [&](const std::vector<Matrix>& got) {
          for (std::size_t i = 0; i < 3; ++i)
            for (std::int64_t r = 0; r < got[i].rows(); ++r)
              ASSERT_EQ(got[i].row_bits(r) == got[3 + i].row_bits(r), true) << i << ' ' << r;
        });
  }
}

TEST(RotaryAppend, RefusesWhatTheContractDoes) {
  Append a({{{2, 2}}, 4, 2, 8, 16, DType::bf16});
  const RotaryAppend good = a.op();
  check(good);
  RotaryAppend op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.qkv.cols = 63;
  refuses("RotaryAppend: qkv is bf16 [2,63], wanted [2,64]");
  op.qkv.dtype = DType::f32;
  refuses("RotaryAppend: qkv is f32 [2,64], wanted bf16");
  op.cos_sin.dtype = DType::bf16;
  refuses("RotaryAppend: cos_sin is bf16 [2,8], wanted f32");
  op.cos_sin.rows = 1;
  refuses("RotaryAppend: cos_sin is f32 [1,8], wanted [2,8]");
  op.cache.v.rows -= 1;
  refuses("RotaryAppend: cache.v is bf16 [127,8], wanted [128,8]");
  op.cache.v.dtype = DType::f16;
  refuses("RotaryAppend: cache.v is f16 [128,8], wanted bf16");
  op.cache.v.data = op.cache.k.data;
  refuses("RotaryAppend: cache.v is the memory of cache.k");
  op.cache.block_tokens = 24;
  refuses("RotaryAppend: cache.k is bf16 [128,8], wanted rows in blocks of 2 kv_heads x 24 tokens");
  op.cache.block_tokens = 0;
  refuses("RotaryAppend: block_tokens is 0, wanted > 0");
  op.cache.kv_heads = 3;
  refuses("RotaryAppend: 4 heads share 3 kv_heads, wanted a multiple");
  op.cache.k.cols = op.cache.v.cols = 7;
  refuses("RotaryAppend: head_dim is 7, wanted even");
  op.requests.query_start.cols = 1;
  refuses("RotaryAppend: query_start is i32 [1,1], wanted [1,2]");
  op.requests.block_table.rows = 2;
  refuses("RotaryAppend: block_table is i32 [2,2], wanted [1,2]");
  op.requests.context_len.dtype = DType::f32;
  refuses("RotaryAppend: context_len is f32 [1,1], wanted i32");
  op.requests.block_table.device = Device::cuda;
  refuses("RotaryAppend: block_table is on cuda, wanted cpu");
  op.cache.k.dtype = op.cache.v.dtype = op.qkv.dtype = DType::i8;
  expect_error<Unsupported>([&] { check(op); },
                            "RotaryAppend: cache.k has no i8 version; it has: f32 f16 bf16 f8e4m3");
}

}  // namespace
}  // namespace ostro::ops
