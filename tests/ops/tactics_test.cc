#include "ops/tactics.h"

#include <gtest/gtest.h>

namespace ostro::ops {
namespace {

constexpr Product kQkv{.weights = DType::bf16, .n = 6144, .k = 4096};

TEST(Tactics, AreFoundForTheirProductAndTokens) {
  Tactics t;
  t.set(kQkv, 8, 16);
  EXPECT_EQ(t.find(kQkv, 8), 16);
  for (Product other :
       {Product{.weights = DType::f16, .n = 6144, .k = 4096}, Product{.n = 6145, .k = 4096},
        Product{.n = 6144, .k = 4097}, Product{.n = 6144, .k = 4096, .swiglu = true},
        Product{.n = 6144, .k = 4096, .experts = 1},
        Product{.n = 6144, .k = 4096, .grouped_x = true}})
    EXPECT_EQ(t.find(other, 8), std::nullopt) << describe(other);
  t.set(kQkv, 8, 32);
  EXPECT_EQ(t.find(kQkv, 8), 32);
}

TEST(Tactics, HoldBetweenTwoNumbersOfTokensThatHaveThemAlike) {
  Tactics t;
  t.set(kQkv, 4, 8);
  t.set(kQkv, 16, 8);
  t.set(kQkv, 64, 32);
  for (std::int64_t tokens : {4, 5, 15, 16}) EXPECT_EQ(t.find(kQkv, tokens), 8) << tokens;
  for (std::int64_t tokens : {17, 63}) EXPECT_EQ(t.find(kQkv, tokens), std::nullopt) << tokens;
  EXPECT_EQ(t.find(kQkv, 64), 32);
  for (std::int64_t tokens : {0, 3, 65}) EXPECT_EQ(t.find(kQkv, tokens), std::nullopt) << tokens;
}

TEST(Tactics, ProductsAreDescribed) {
  EXPECT_EQ(describe(kQkv), "bf16 [6144,4096]");
  EXPECT_EQ(describe(Product{DType::f8e4m3, 14336, 4096, true, 8}),
            "8 x f8e4m3 [14336,4096] swiglu");
  EXPECT_EQ(describe(as_down({.weights = DType::f8e4m3, .n = 4096, .k = 14336})),
            "f8e4m3 [4096,14336] grouped x");
  EXPECT_EQ(describe(Product{.weights = DType::u8, .n = 2, .k = 128}), "int4 [2,128]");
}

// Of int4 weights k counts columns, not bytes.
TEST(Tactics, AWeightGivesItsProduct) {
  int any = 0;
  const quant::Weight w{.data = matrix(&any, DType::u8, 6, 64), .scale = {}};
  EXPECT_EQ(product(w, true, 3), (Product{DType::u8, 6, 128, true, 3}));
}

TEST(Tactics, OnlyE4m3DownProjectionsHaveGroupsOfX) {
  for (const DType type : {DType::bf16, DType::f8e4m3, DType::i8, DType::u8})
    EXPECT_EQ(as_down({.weights = type, .n = 6, .k = 256}).grouped_x, type == DType::f8e4m3);
}

}  // namespace
}  // namespace ostro::ops
