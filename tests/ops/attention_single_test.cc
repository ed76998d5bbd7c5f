// PagedAttention of single tokens and chunks in one step, when Requests::single tells which is
// which: the contract in ops/attention.h, for every backend of this build.
#include "ops/attention.h"
#include "ops/paged.h"
#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct Case {
  DType dtype;
  std::int64_t head_dim, window;
  bool e4m3_cache = false;
};

// Single tokens, some of whose contexts are several parts, then the others; a GPU has a kernel for
// each.
constexpr std::int64_t kSingle = 9;
const std::vector<PagedRequest> kRequests{{1, 70},  {1, 1},   {1, 1500}, {1, 513},  {1, 9},
                                          {1, 65},  {1, 64},  {1, 128},  {1, 1024}, {0, 9},
                                          {33, 40}, {1, 600}, {140, 190}};

class Mixed {
 public:
  explicit Mixed(const Case& c)
      : c_(c),
        pages_(kRequests, 16, c.window),
        q_(Matrix(c.dtype, pages_.tokens(), kHeads * c.head_dim).random(1)),
        k_(pages_.cache(c.e4m3_cache ? DType::f8e4m3 : c.dtype, kKvHeads, c.head_dim, 2)),
        v_(pages_.cache(c.e4m3_cache ? DType::f8e4m3 : c.dtype, kKvHeads, c.head_dim, 3)) {}

  Matrix output() const { return {c_.dtype, q_.rows(), q_.cols(), 3}; }

  PagedAttention op(Matrix& y, std::int64_t single) {
    return {.q = q_.view(),
            .requests = pages_.view(single),
            .cache = {.k = k_.view(), .v = v_.view(), .kv_heads = kKvHeads, .block_tokens = 16},
            .y = y.view(),
            .heads = kHeads,
            .scale = 0.125f,
            .window = c_.window};
  }

 private:
  static constexpr std::int64_t kHeads = 8, kKvHeads = 2;
  Case c_;
  Pages pages_;
  Matrix q_, k_, v_;
};

TEST(SingleTokens, AndTheRestAreTheWhole) {
  for (const DType dtype : kFloats) {
    Mixed mixed({dtype, 64, 300});
    Matrix want = mixed.output(), got = mixed.output();
    reference(mixed.op(want, 0));
    const PagedAttention whole = mixed.op(got, kSingle);
    reference(single_part(whole));
    const Matrix untouched = mixed.output();
    for (std::int64_t t = kSingle; t < got.rows(); ++t)
      ASSERT_EQ(got.row_bits(t) == untouched.row_bits(t), true) << "is of the rest: " << t;
    reference(rest_part(whole));
    expect_same_rows(got, want, 0);
  }
}

TEST(SingleTokens, HaveTheSameBitsWhateverIsToldOfThem) {
  for (const Case& c :
       {Case{DType::f16, 64, 300}, Case{DType::f16, 128, 0, true}, Case{DType::bf16, 64, 0, true},
        Case{DType::bf16, 128, 0}, Case{DType::bf16, 80, 0}, Case{DType::f32, 64, 300}})
    for (const std::int64_t single : {std::int64_t{1}, kSingle}) {
      SCOPED_TRACE(text(name(c.dtype), " head_dim ", c.head_dim, " window ", c.window,
                        c.e4m3_cache ? " e4m3" : "", " single ", single));
      Mixed mixed(c);
      on_every_target(
          [&](Backend& backend) {
            std::vector<Matrix> all;
            for (const std::int64_t told : {std::int64_t{0}, single}) {
              all.push_back(mixed.output());
              backend.run(mixed.op(all.back(), told));
              backend.wait();
            }
            return all;
          },
          [&](const std::vector<Matrix>& got) { expect_same_rows(got[1], got[0], 0); });
    }
}

TEST(SingleTokens, AreRefusedIfTheyAreNot) {
  Mixed mixed({DType::f32, 8, 0});
  Matrix y = mixed.output();
  PagedAttention op = mixed.op(y, 14);
  expect_error<InvalidArgument>([&] { check(op); }, "single is 14, wanted a part of 13 requests");
  op = mixed.op(y, kSingle);
  check(op);
  op.requests.rest_start = {};
  expect_error<InvalidArgument>([&] { check(op); },
                                "PagedAttention: rest_start is f32 [0,0], wanted [1,5]");
  op = mixed.op(y, 10);  // the tenth has none
  expect_error<InvalidArgument>([&] { reference(op); },
                                "query_start[10] is 9 of 10 requests of one token");
  op = mixed.op(y, kSingle);
  op.requests.rest_start.as<std::int32_t>()[2] = 7;
  expect_error<InvalidArgument>([&] { reference(op); }, "rest_start[2] is 7, wanted 33");
}

}  // namespace
}  // namespace ostro::ops
