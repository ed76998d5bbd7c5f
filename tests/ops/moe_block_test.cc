// MoeBlock: the contract in ops/moe_block.h, for every backend of this build. Its four operations
// have tests of their own, against their references; here it has their bits.
#include "ops/moe_block.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

struct BlockCase {
  std::int64_t tokens, live;
  std::int64_t hidden, inter;
  std::int64_t experts, top_k;
  Range local;
  DType x, weight;
  Activations activations = Activations::as_is;
  bool has_next = true;   // else it only adds
  bool as_model = false;  // norm.x is mlp.y, and next.y norm.y
};

constexpr std::int32_t kCounted = 5;  // of each expert, before the op

// What the block writes: residual, h, chosen, weights, counts, after, branch.
using Outputs = std::vector<Matrix>;
enum Output { kResidual, kH, kChosen, kWeights, kCounts, kAfter, kBranch };

class Block {
 public:
  explicit Block(const BlockCase& c)
      : c_(c),
        x_(Matrix(DType::f32, c.tokens, c.hidden, 4).random(1)),
        norm_(Matrix(c.x, 1, c.hidden).random(2)),
        next_(Matrix(c.x, 1, c.hidden).random(3)),
        router_(Matrix(c.x, c.experts, c.hidden).random(4, 2 / std::sqrt(float(c.hidden)))),
        live_(DType::i32, 1, 1) {
    live_.set_integer(0, 0, std::int32_t(c.live));
    for (std::int64_t e = c.local.begin; e < c.local.end; ++e) {
      const std::uint64_t seed = 10 + std::uint64_t(e) * 3;
      const float deviation = 1 / std::sqrt(float(c.hidden));
      gate_.emplace_back(c.weight, c.inter, c.hidden, 1, seed, deviation);
      up_.emplace_back(c.weight, c.inter, c.hidden, 1, seed + 1, deviation);
      down_.emplace_back(c.weight, c.hidden, c.inter, 2, seed + 2, 1 / std::sqrt(float(c.inter)));
    }
  }

  Outputs outputs() {
    Outputs out{Matrix(DType::f32, c_.tokens, c_.hidden, 4).random(5),
                Matrix(c_.x, c_.tokens, c_.hidden, 8),
                Matrix(DType::i32, c_.tokens, c_.top_k, 2),
                Matrix(DType::f32, c_.tokens, c_.top_k, 1),
                Matrix(DType::i32, 1, c_.experts),
                Matrix(c_.x, c_.tokens, c_.hidden, 8),
                c_.as_model ? x_ : Matrix(DType::f32, c_.tokens, c_.hidden, 4)};
    for (std::int64_t e = 0; e < c_.experts; ++e) out[kCounts].set_integer(0, e, kCounted);
    return out;
  }

  template <class Place>
  std::vector<Expert> experts(Place&& place) {
    std::vector<Expert> experts;
    for (std::size_t e = 0; e < gate_.size(); ++e)
      experts.push_back(
          {place(gate_[e].weight()), place(up_[e].weight()), place(down_[e].weight())});
    return experts;
  }

  // Of the rows of a range alone.
  MoeBlock op(Outputs& out, const std::vector<Expert>& local, const quant::Weight& router,
              Range rows) {
    const auto of = [&](Output o) { return out[o].view().rows_of(rows); };
    const View after = !c_.has_next ? View{} : of(c_.as_model ? kH : kAfter);
    return {.norm = {.x = c_.as_model ? of(kBranch) : x_.view().rows_of(rows),
                     .residual = of(kResidual),
                     .weight = norm_.view(),
                     .y = of(kH),
                     .eps = 1e-5f,
                     .activations = c_.activations},
            .route = {.x = of(kH),
                      .router = router,
                      .experts = of(kChosen),
                      .weights = of(kWeights),
                      .renormalize = c_.top_k % 2 == 0,
                      .live = c_.live < c_.tokens ? live_.view() : View{},
                      .counts = out[kCounts].view()},
            .mlp = {.x = of(kH),
                    .experts = of(kChosen),
                    .weights = of(kWeights),
                    .local = local,
                    .first_expert = c_.local.begin,
                    .y = of(kBranch),
                    .activations = c_.activations},
            .next = {.x = of(kBranch),
                     .residual = of(kResidual),
                     .weight = c_.has_next ? next_.view() : View{},
                     .y = after,
                     .eps = 1e-5f,
                     .activations = c_.has_next ? c_.activations : Activations::as_is}};
  }
  Matrix& router() { return router_; }

 private:
  BlockCase c_;
  Matrix x_, norm_, next_, router_, live_;
  std::vector<TestWeight> gate_, up_, down_;
};

// Of what a block must write; h only if it is next.y too.
void expect_bits(const Outputs& got, const Outputs& want, bool h) {
  for (const Output o : {kResidual, kH, kChosen, kWeights, kCounts, kAfter})
    for (std::int64_t r = 0; r < want[o].rows() && (h || o != kH); ++r)
      ASSERT_EQ(got[o].row_bits(r) == want[o].row_bits(r), true) << "output " << o << " row " << r;
}

void compare(const BlockCase& c) {
  SCOPED_TRACE(text("tokens ", c.tokens, " live ", c.live, " hidden ", c.hidden, " inter ", c.inter,
                    " experts ", c.experts, " top_k ", c.top_k, " local [", c.local.begin, ',',
                    c.local.end, ") ", name(c.x), ' ', name(c.weight), " next ", c.has_next,
                    " as model ", c.as_model));
  Block block(c);
  on_every_target(
      [&](Backend& backend) {
        const auto place = [&](const quant::Weight& w) { return backend.place(w); };
        const std::vector<Expert> local = block.experts(place);
        const quant::Weight router = place(block.router().weight());
        const Range all{0, c.tokens};
        Outputs want = block.outputs();
        const MoeBlock four = block.op(want, local, router, all);
        backend.run(four.norm);
        backend.run(four.route);
        backend.run(four.mlp);
        backend.run(four.next);
        backend.wait();
        // Twice, for what one leaves behind must not change the next.
        for (int i = 0; i < 2; ++i) {
          Outputs got = block.outputs();
          backend.run(block.op(got, local, router, all));
          backend.wait();
          expect_bits(got, want, c.as_model);
        }
        return std::vector<Matrix>(want.begin(), want.begin() + kBranch);
      },
      [](const std::vector<Matrix>&) {}, takes_odd_rows(c.weight, c.activations));
}

TEST(MoeBlock, HasTheBitsOfItsFourOperations) {
  for (DType x : kFloats)
    for (std::int64_t tokens : {0, 1, 2, 17, 65})
      for (const bool as_model : {false, true}) {
        compare({tokens, tokens, 64, 40, 8, 2, {0, 8}, x, x, Activations::as_is, true, as_model});
        compare({tokens,
                 tokens - tokens / 3,
                 72,
                 33,
                 8,
                 2,
                 {0, 8},
                 x,
                 x,
                 Activations::as_is,
                 true,
                 as_model});
      }
  compare({9, 9, 64, 40, 8, 2, {3, 6}, DType::bf16, DType::bf16});
  compare({9, 9, 64, 40, 8, 2, {0, 8}, DType::bf16, DType::bf16, Activations::as_is, false});
  compare({1, 0, 64, 40, 8, 2, {0, 8}, DType::bf16, DType::bf16});
  for (const auto& [experts, top_k] : {std::pair{1, 1}, {3, 3}, {9, 1}, {31, 5}, {32, 32}, {33, 2}})
    compare({11, 10, 136, 24, experts, top_k, {0, experts}, DType::f16, DType::f16});
}

// More tokens than the one kernel before the products takes on a GPU, and than blocks of the other.
TEST(MoeBlock, HasThemForPrompts) {
  constexpr auto kAsIs = Activations::as_is;
  for (DType x : {DType::bf16, DType::f16})
    for (const bool as_model : {false, true})
      compare({701, 690, 72, 40, 8, 2, {0, 8}, x, x, kAsIs, true, as_model});
  for (const bool has_next : {false, true})
    compare({300, 300, 64, 40, 8, 2, {3, 6}, DType::bf16, DType::bf16, kAsIs, has_next});
  for (const auto& [experts, top_k] : {std::pair{1, 1}, {9, 1}, {31, 5}, {32, 32}, {33, 2}})
    compare({270, 270, 136, 24, experts, top_k, {0, experts}, DType::f16, DType::f16});
  compare({257, 257, 4104, 24, 8, 2, {0, 8}, DType::bf16, DType::bf16});
}

TEST(MoeBlock, HasThemForQuantisedWeights) {
  constexpr auto kAsIs = Activations::as_is;
  const Activations e4m3 = e4m3_activations().back();
  for (std::int64_t tokens : {1, 7, 64, 130, 300, 513})
    for (const auto& [weight, activations] : {std::pair{DType::f8e4m3, e4m3},
                                              {DType::i8, kAsIs},
                                              {DType::u8, kAsIs},
                                              {DType::u8, Activations::e4m3_per_token}})
      compare({tokens, tokens, 128, 256, 8, 2, {0, 8}, DType::bf16, weight, activations});
}

TEST(MoeBlock, HasThemAtMixtralsWidths) {
  for (std::int64_t hidden : {4096, 6144})
    for (std::int64_t tokens : {1, 5, 128, 450})
      compare({tokens,
               tokens,
               hidden,
               128,
               8,
               2,
               {0, 8},
               DType::bf16,
               DType::f8e4m3,
               e4m3_activations().back(),
               true,
               true});
}

TEST(MoeBlock, TokensDoNotDependOnTheBatch) {
  const BlockCase c{kBatchRows, kBatchRows, 136, 264, 8, 2, {0, 8}, DType::bf16, DType::bf16};
  Block block(c);
  for (const Target& target : targets()) {
    SCOPED_TRACE(target.name());
    const auto backend = target.make();
    const auto place = [&](const quant::Weight& w) { return backend->place(w); };
    const std::vector<Expert> local = block.experts(place);
    const quant::Weight router = place(block.router().weight());
    const auto run = [&](Range rows) {
      Outputs out = block.outputs();
      backend->run(block.op(out, local, router, rows));
      backend->wait();
      return out;
    };
    const Outputs whole = run({0, kBatchRows});
    for (std::int64_t rows : kBatches)
      for (std::int64_t first : {std::int64_t{0}, kBatchRows - rows}) {
        const Outputs part = run({first, first + rows});
        for (const Output o : {kResidual, kChosen, kWeights, kAfter})
          for (std::int64_t r = first; r < first + rows; ++r)
            ASSERT_EQ(part[o].row_bits(r) == whole[o].row_bits(r), true)
                << "output " << o << " row " << r << " is another in a batch of " << rows;
      }
  }
}

// The reference is the four references, in their order: their results, computed one by one here.
TEST(MoeBlock, ReferenceIsThatOfItsFourOperations) {
  Block block({5, 4, 16, 12, 4, 2, {0, 4}, DType::bf16, DType::bf16});
  const auto as_is = [](const quant::Weight& w) { return w; };
  const std::vector<Expert> local = block.experts(as_is);
  Outputs want = block.outputs(), got = block.outputs();
  const MoeBlock four = block.op(want, local, block.router().weight(), {0, 5});
  reference(four.norm);
  reference(four.route);
  reference(four.mlp);
  reference(four.next);
  reference(block.op(got, local, block.router().weight(), {0, 5}));
  expect_bits(got, want, true);
  EXPECT_EQ(want[kChosen].integer(4, 0), -1);  // padding
}

class MoeBlockContract : public ::testing::Test {
 protected:
  Block block_{{3, 3, 16, 12, 4, 2, {0, 4}, DType::bf16, DType::bf16}};
  std::vector<Expert> local_ = block_.experts([](const quant::Weight& w) { return w; });
  Outputs out_ = block_.outputs();
  MoeBlock op_ = block_.op(out_, local_, block_.router().weight(), {0, 3});

  void refuses(const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op_); }, wanted);
  }
};

TEST_F(MoeBlockContract, Holds) { check(op_); }

TEST_F(MoeBlockContract, EachOperationsHolds) {
  op_.norm.eps = 0;
  refuses("AddRmsNorm: eps is 0, wanted > 0");
}

TEST_F(MoeBlockContract, TheRouterReadsTheNorm) {
  op_.norm.activations = Activations::e4m3_per_token;
  op_.norm.for_products = true;
  refuses("MoeBlock: norm.y is for products alone, but route reads it");
}

TEST_F(MoeBlockContract, WhatIsHandedOnIsOne) {
  const MoeBlock fine = op_;
  op_.route.x = out_[kAfter].view();
  refuses("MoeBlock: route.x is bf16 [3,16], wanted norm.y, which is bf16 [3,16] elsewhere");
  op_ = fine;
  op_.mlp.x = out_[kAfter].view();
  refuses("MoeBlock: mlp.x is bf16 [3,16], wanted norm.y");
  op_ = fine;
  Matrix chosen(DType::i32, 3, 2), weights(DType::f32, 3, 2);
  op_.mlp.experts = chosen.view();
  refuses("MoeBlock: mlp.experts is i32 [3,2], wanted route.experts");
  op_ = fine;
  op_.mlp.weights = weights.view();
  refuses("MoeBlock: mlp.weights is f32 [3,2], wanted route.weights");
  op_ = fine;
  op_.next.x = {};
  refuses("MoeBlock: next.x is f32 [0,0], wanted mlp.y, which is f32 [3,16]");
}

}  // namespace
}  // namespace ostro::ops
