// How products and attention are cut into tiles: host code.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "backends/cuda/plan/attention_plan.h"
#include "backends/cuda/plan/gemm_plan.h"
#include "backends/cuda/plan/peer_plan.h"
#include "backends/cuda/plan/tactics.h"
#include "base/math.h"

namespace ostro::cuda {
namespace {

TEST(DenseTile, HoldsTheTokensWhereThatMakesEnoughBlocks) {
  const auto tile = [](std::int64_t tokens, std::int64_t n) {
    return dense_tile(tokens, n, false, false, 132);
  };
  constexpr std::int64_t kVocab = 32000, kHidden = 4096;
  EXPECT_EQ(tile(1, kVocab), 8);
  EXPECT_EQ(tile(9, kVocab), 16);
  EXPECT_EQ(tile(64, kVocab), 64);
  EXPECT_EQ(tile(65, kVocab), kTmaTile);
  EXPECT_EQ(tile(100000, kVocab), kTmaTile);
  // 64 row tiles of 64: two or more token tiles.
  EXPECT_EQ(tile(1, kHidden), 8);
  EXPECT_EQ(tile(64, kHidden), 32);
  EXPECT_EQ(tile(128, kHidden), 64);
  EXPECT_EQ(tile(256, 21 * 256), 64);
  EXPECT_EQ(tile(256, 22 * 256), kTmaTile);
  EXPECT_EQ(tile(2048, kHidden), kTmaTile);
}

TEST(DenseTile, OfSwigluHasFewerOutputs) {
  // 44 row tiles of 128 are a third of 132 processors, 22 of 256 are not.
  EXPECT_EQ(dense_tile(128, 44 * 128, true, true, 132), kTmaTile);
  EXPECT_EQ(dense_tile(128, 44 * 128, true, false, 132), 64);
}

TEST(DecodeTile, IsThatOfDenseE4m3WhereItMakesOneBlockAProcessor) {
  EXPECT_TRUE(decode_tile_takes(1, 6144, 132));
  EXPECT_TRUE(decode_tile_takes(kMostDenseTokens, 132 * kMostDenseRows, 132));
  EXPECT_FALSE(decode_tile_takes(1, 132 * kMostDenseRows + 1, 132));
  // 66 clusters of tiles of 192 weight rows by twice 64 tokens, and by twice 128.
  for (const std::int64_t tokens : {128, 256}) {
    EXPECT_TRUE(decode_tile_takes(tokens, 66 * 192, 132));
    EXPECT_FALSE(decode_tile_takes(tokens, 66 * 192 + 1, 132));
  }
  EXPECT_TRUE(decode_tile_takes(512, 6144, 132));  // 32 by 2
  EXPECT_FALSE(decode_tile_takes(513, 6144, 132));
  EXPECT_TRUE(decode_tile_takes(768, 4096, 132));  // 22 by 3
  EXPECT_FALSE(decode_tile_takes(769, 4096, 132));
}

TEST(WaveTiles, AreOfTheFewestWeightRowsThatMakeOneBlockAProcessor) {
  EXPECT_EQ(wave_tiles(65, 4096, 132), (WaveTiles{64, 64}));
  EXPECT_EQ(wave_tiles(128, 6144, 132), (WaveTiles{96, 64}));
  EXPECT_EQ(wave_tiles(129, 4096, 132), (WaveTiles{64, 128}));
  EXPECT_EQ(wave_tiles(256, 6144, 132), (WaveTiles{96, 128}));
  EXPECT_EQ(wave_tiles(256, 6144, 127), (WaveTiles{128, 128}));
  EXPECT_EQ(wave_tiles(257, 4096, 132), (WaveTiles{128, 128}));
  EXPECT_EQ(wave_tiles(512, 4096, 132), (WaveTiles{128, 128}));
  EXPECT_EQ(wave_tiles(512, 6144, 132), (WaveTiles{192, 128}));
  EXPECT_EQ(wave_tiles(100000, 6144, 132), (WaveTiles{192, 128})) << "none does";
}

TEST(ExpertTile, IsThatOfPromptsForFewExperts) {
  for (const bool e4m3 : {false, true}) {
    EXPECT_EQ(expert_tile(1, 8, e4m3), 8);
    EXPECT_EQ(expert_tile(32, 8, e4m3), 32);
    EXPECT_EQ(expert_tile(385, 8, e4m3), kTmaTile);
    EXPECT_EQ(expert_tile(100000, kMostTmaExperts, e4m3), kTmaTile);
    EXPECT_EQ(expert_tile(100000, kMostTmaExperts + 1, e4m3), kLargestTileWithoutTma);
  }
  EXPECT_EQ(expert_tile(128, 8, false), 64);
  EXPECT_EQ(expert_tile(129, 8, false), 128);
  EXPECT_EQ(expert_tile(384, 8, false), 128);
  EXPECT_EQ(expert_tile(128, 8, true), 64);
  EXPECT_EQ(expert_tile(129, 8, true), kTmaTile);
  EXPECT_EQ(expert_tile(192, 8, true), kTmaTile);
  EXPECT_EQ(expert_tile(193, 8, true), 96);
  EXPECT_EQ(expert_tile(256, 8, true), 96);
  EXPECT_EQ(expert_tile(257, 8, true), kTmaTile);
  EXPECT_EQ(expert_tile(256, kMostTmaExperts + 1, false), kLargestTileWithoutTma);
}

TEST(IntegerTile, HoldsTheTokensWhereThatMakesEnoughBlocks) {
  const auto tile = [](std::int64_t tokens, std::int64_t n) {
    return integer_tile(tokens, n, false, 132);
  };
  EXPECT_EQ(tile(1, 6144), 8);
  EXPECT_EQ(tile(9, 32000), 16);
  EXPECT_EQ(tile(9, 6144), 8);  // 96 row tiles of 64
  EXPECT_EQ(tile(33, 32000), 64);
  EXPECT_EQ(tile(64, 6144), 32);  // 24 row tiles of 256
  EXPECT_EQ(tile(512, 4096), 64);
  EXPECT_EQ(tile(2048, 4096), kIntegerTmaTile);
}

TEST(IntegerExpertTile, IsThatOfPromptsForManyTokensAndFewExperts) {
  EXPECT_EQ(integer_expert_tile(1, 8), 8);
  EXPECT_EQ(integer_expert_tile(9, 8), 16);
  EXPECT_EQ(integer_expert_tile(33, 8), 64);
  EXPECT_EQ(integer_expert_tile(256, 8), kLargestTileWithoutTma);
  EXPECT_EQ(integer_expert_tile(257, kMostTmaExperts), kIntegerTmaTile);
  EXPECT_EQ(integer_expert_tile(5000, kMostTmaExperts + 1), kLargestTileWithoutTma);
}

TEST(PlannedTile, IsThatOfTheProductsKind) {
  const auto planned = [](const ops::Product& p, std::int64_t tokens) {
    return planned_tile(p, tokens, 132);
  };
  for (const std::int64_t tokens : {1, 16, 64, 128, 300, 2048}) {
    EXPECT_EQ(planned({DType::bf16, 4096, 4096}, tokens),
              dense_tile(tokens, 4096, false, false, 132));
    EXPECT_EQ(planned({DType::f8e4m3, 44 * 128, 4096, true}, tokens),
              dense_tile(tokens, 44 * 128, true, true, 132));
    EXPECT_EQ(planned({DType::f8e4m3, 4096, 4096}, tokens),
              tokens <= 768 ? kDecodeTile : dense_tile(tokens, 4096, true, false, 132));
    EXPECT_EQ(planned(ops::as_down({DType::f8e4m3, 4096, 14336}), tokens),
              dense_tile(tokens, 4096, true, false, 132));
    EXPECT_EQ(planned({DType::f8e4m3, 32000, 4096}, tokens),
              dense_tile(tokens, 32000, true, false, 132));
    EXPECT_EQ(planned({DType::i8, 4096, 4096}, tokens), integer_tile(tokens, 4096, false, 132));
    EXPECT_EQ(planned({DType::u8, 4096, 4096, true}, tokens),
              integer_tile(tokens, 4096, true, 132));
    EXPECT_EQ(planned({DType::f8e4m3, 14336, 4096, true, 8}, tokens), expert_tile(tokens, 8, true));
    EXPECT_EQ(planned({DType::u8, 14336, 4096, true, 8}, tokens), integer_expert_tile(tokens, 8));
  }
}

TEST(TilesToTry, AreThoseThatKernelsHaveAndMayBeFast) {
  using Tiles = std::vector<int>;
  const ops::Product dense{DType::bf16, 4096, 4096}, int4{DType::u8, 4096, 4096};
  EXPECT_EQ(tiles_to_try(dense, 1), (Tiles{8, 16, 32}));
  EXPECT_EQ(tiles_to_try(dense, 16), (Tiles{8, 16, 32, 64}));
  EXPECT_EQ(tiles_to_try(dense, 64), (Tiles{8, 16, 32, 64, kTmaTile}));
  EXPECT_EQ(tiles_to_try(dense, 129), (Tiles{16, 32, 64, kTmaTile}));
  EXPECT_EQ(tiles_to_try(dense, 8192), (Tiles{64, kTmaTile}));
  EXPECT_EQ(tiles_to_try(int4, 64), (Tiles{8, 16, 32, 64, kIntegerTmaTile}));
  EXPECT_EQ(tiles_to_try({DType::bf16, 4096, 4096, true, 8}, 64),
            (Tiles{8, 16, 32, 64, 128, kTmaTile}));
  EXPECT_EQ(tiles_to_try({DType::f8e4m3, 4096, 4096, true, 8}, 64),
            (Tiles{8, 16, 32, 64, 96, kTmaTile}));
  const ops::Product e4m3{DType::f8e4m3, 4096, 4096};
  EXPECT_EQ(tiles_to_try(e4m3, 1), (Tiles{8, 16, 32, kDecodeTile}));
  EXPECT_EQ(tiles_to_try(e4m3, 128), (Tiles{8, 16, 32, 64, kDecodeTile, kTmaTile}));
  EXPECT_EQ(tiles_to_try(e4m3, 129), (Tiles{16, 32, 64, kDecodeTile, kTmaTile}));
  EXPECT_EQ(tiles_to_try(e4m3, 1024), (Tiles{64, kDecodeTile, kTmaTile}));
  EXPECT_EQ(tiles_to_try(e4m3, 1025), (Tiles{64, kTmaTile}));
  EXPECT_EQ(tiles_to_try(ops::as_down(e4m3), 128), (Tiles{8, 16, 32, 64, kTmaTile}));
  const ops::Product many{DType::f8e4m3, 4096, 4096, true, kMostTmaExperts + 1};
  EXPECT_EQ(tiles_to_try(many, 8192), Tiles{64});
  EXPECT_EQ(tiles_to_try({DType::f32, 4096, 4096}, 8), Tiles{}) << "one kernel alone";
}

// Else a table could not say what the plan says.
TEST(TilesToTry, HoldThePlansTile) {
  for (const DType type : {DType::bf16, DType::f8e4m3, DType::i8, DType::u8})
    for (const std::int64_t experts : {0, 8, 17})
      for (const std::int64_t n : {128, 4096, 32000})
        for (std::int64_t tokens = 1; tokens <= 8192; tokens = tokens * 3 / 2 + 1) {
          const ops::Product first{type, n, 4096, experts > 0, experts};
          for (const ops::Product& p : {first, ops::as_down(first)}) {
            const std::vector<int> tiles = tiles_of(p);
            ASSERT_NE(std::ranges::find(tiles, planned_tile(p, tokens, 132)), tiles.end())
                << describe(p) << ' ' << tokens;
          }
        }
}

// The most tiles over every way to spread `slots` over `experts`.
std::int64_t most_by_search(std::int64_t slots, std::int64_t experts, std::int64_t tile) {
  if (experts == 1) return ceil_div(slots, tile);
  std::int64_t most = 0;
  for (std::int64_t first = 0; first <= slots; ++first)
    most = std::max(most, ceil_div(first, tile) + most_by_search(slots - first, experts - 1, tile));
  return most;
}

TEST(MostTiles, IsWhatTheWorstRoutingMakes) {
  for (std::int64_t experts = 1; experts <= 4; ++experts)
    for (int tile : {1, 2, 3, 8})
      for (std::int64_t slots = 0; slots <= 20; ++slots)
        ASSERT_EQ(most_tiles(slots, experts, tile), most_by_search(slots, experts, tile))
            << slots << " slots, " << experts << " experts, tiles of " << tile;
  EXPECT_EQ(most_tiles(8192 * 2, 8, 128), 8 + (16384 - 8) / 128);
}

// Each request's tiles have numbers of their own below row_tiles: the kernel finds its request by
// the first of them.
TEST(AttentionPlan, HasATileForEveryRow) {
  const std::vector<std::vector<std::int64_t>> steps{
      {1}, {0, 1, 0}, {1, 1, 1, 1}, {5, 0, 17}, {33, 1, 1}, {512}, {100, 3, 64, 65}};
  for (const auto& queries : steps)
    for (std::int64_t group : {1, 3, 4, 71})
      for (const auto& [kv_heads, wgmma] :
           {std::pair{1, false}, {8, false}, {1, true}, {8, true}}) {
        std::int64_t tokens = 0;
        for (std::int64_t q : queries) tokens += q;
        const AttentionPlan plan = plan_attention({.tokens = tokens,
                                                   .requests = std::int64_t(queries.size()),
                                                   .heads = group * kv_heads,
                                                   .kv_heads = kv_heads,
                                                   .context = 1000,
                                                   .wgmma = wgmma},
                                                  132);
        const std::int64_t tile = plan.wgmma ? kWgmmaRows : plan.warps * kWarpRows;
        std::int64_t token = 0, next_free = 0;
        for (std::size_t r = 0; r < queries.size(); ++r) {
          const std::int64_t first = token * group / tile + std::int64_t(r);
          ASSERT_GE(first, next_free);
          next_free = first + ceil_div(queries[r] * group, tile);
          token += queries[r];
        }
        ASSERT_LE(next_free, plan.row_tiles);
      }
}

TEST(AttentionPlan, SplitsLongContextsOfFewRequests) {
  AttentionShape one{.tokens = 1, .requests = 1, .heads = 32, .kv_heads = 8, .context = 4096};
  EXPECT_EQ(plan_attention(one, 132).splits, 4096 / kSplitTokens);
  EXPECT_EQ(plan_attention(one, 132).warps, 1);
  one.context = kSplitTokens;
  EXPECT_EQ(plan_attention(one, 132).splits, 1);
  AttentionShape many{.tokens = 512, .requests = 512, .heads = 32, .kv_heads = 8, .context = 4096};
  EXPECT_EQ(plan_attention(many, 132).splits, 1);
  many.requests = many.tokens = 128;
  EXPECT_EQ(plan_attention(many, 132).splits, 4096 / kSplitTokens);
  many.context = 131072;  // too much scratch
  EXPECT_EQ(plan_attention(many, 132).splits, 1);
  AttentionShape prompt{.tokens = 2048, .requests = 1, .heads = 32, .kv_heads = 8, .context = 2048};
  EXPECT_EQ(plan_attention(prompt, 132).splits, 1);
  EXPECT_EQ(plan_attention(prompt, 132).warps, 4);
  EXPECT_FALSE(plan_attention(prompt, 132).wgmma);
  prompt.wgmma = true;
  EXPECT_TRUE(plan_attention(prompt, 132).wgmma);
  prompt.tokens = 64;  // blocks of parts need the other kernel
  EXPECT_FALSE(plan_attention(prompt, 132).wgmma);
  EXPECT_EQ(plan_attention(prompt, 132).splits, 2048 / kSplitTokens);
  prompt.tokens = 300;  // 20 tiles of four warps: enough blocks for warpgroups alone
  EXPECT_EQ(plan_attention(prompt, 132).splits, 1);
  EXPECT_EQ(plan_attention(prompt, 132).blocks, (300 * 4 / kWgmmaRows + 1) * 8);
  prompt.tokens = 2048;
  EXPECT_EQ(plan_attention(prompt, 132).blocks, 132);
  prompt.tokens = 300;
  prompt.wgmma = false;
  EXPECT_EQ(plan_attention(prompt, 132).splits, 2048 / kSplitTokens);
  EXPECT_EQ(plan_attention({}, 132).row_tiles, 0);
}

TEST(AttentionPlan, HasAKernelForSingleTokens) {
  AttentionShape s{.tokens = 8, .requests = 8, .heads = 32, .kv_heads = 8, .context = 4096};
  EXPECT_FALSE(plan_attention(s, 132).decode);
  s.decode = 1;
  EXPECT_TRUE(plan_attention(s, 132).decode);
  EXPECT_EQ(plan_attention(s, 132).splits, 4096 / kSplitTokens);
  EXPECT_EQ(plan_attention(s, 132).blocks, 132);
  s.context = kSplitTokens;
  EXPECT_EQ(plan_attention(s, 132).splits, 1);
  EXPECT_EQ(plan_attention(s, 132).blocks, 64);
  s.tokens = 9;  // some request has two
  EXPECT_FALSE(plan_attention(s, 132).decode);
  s.context = 4096;
  s.tokens = s.requests = 32;  // 256 items: two turns, of parts 16 that are an eighth as long
  EXPECT_EQ(plan_attention(s, 132).splits, 1);
  s.tokens = s.requests = 17;  // 136 items: two turns, of parts nine
  EXPECT_EQ(plan_attention(s, 132).splits, 4096 / kSplitTokens);
  s.decode = 2;  // one turn, of parts five
  EXPECT_EQ(plan_attention(s, 132).splits, 4096 / kSplitTokens);
  s.tokens = s.requests = 32;
  EXPECT_EQ(plan_attention(s, 132).splits, 1);
  EXPECT_EQ(plan_attention(s, 132).blocks, 256);
}

TEST(AttentionPlan, TakesSingleTokensApartWhereThatPays) {
  const auto apart = [](std::int64_t single, std::int64_t chunk, bool e4m3, int decode = 1) {
    return single_apart({.tokens = single + chunk,
                         .requests = single + 1,
                         .heads = 32,
                         .kv_heads = 8,
                         .context = 4096,
                         .wgmma = true,
                         .decode = decode},
                        single, e4m3);
  };
  EXPECT_TRUE(apart(64, 512, true));
  EXPECT_FALSE(apart(64, 512, false));
  EXPECT_TRUE(apart(256, 256, false));  // eight rows a request: one warp for each
  EXPECT_TRUE(apart(8, 1024, true));
  EXPECT_FALSE(apart(7, 1024, true));
  EXPECT_FALSE(apart(0, 1024, true));
  EXPECT_FALSE(apart(64, 512, true, 0)) << "no kernel for single tokens";
  EXPECT_FALSE(single_apart(
      {.tokens = 64, .requests = 64, .heads = 32, .kv_heads = 8, .context = 64, .decode = 1}, 64,
      true))
      << "there is no rest";
}

TEST(PeerSum, GoesInTwoRoundsWhereThatSavesMoreThanTheSecondWait) {
  // Of two ranks each sends as much either way.
  for (const std::int64_t rows : {1, 128, 8192})
    EXPECT_FALSE(peer_sum_in_two_rounds(2, rows * 4096)) << rows;
  // Rows of 32 KB: of 4 ranks a row saves 3 - 1.5 of them, of 8 ranks 7 - 1.75.
  EXPECT_FALSE(peer_sum_in_two_rounds(4, 15 * 4096));
  EXPECT_TRUE(peer_sum_in_two_rounds(4, 16 * 4096));
  EXPECT_FALSE(peer_sum_in_two_rounds(8, 4 * 4096));
  EXPECT_TRUE(peer_sum_in_two_rounds(8, 5 * 4096));
}

TEST(PeerSum, LeavesLargeSumsToNccl) {
  EXPECT_TRUE(peer_sum_pays(512 * 4096));
  EXPECT_FALSE(peer_sum_pays(512 * 4096 + 4));
}

TEST(PeerSum, LaysOutAPlaceForEachRankAndTheSum) {
  // 2 places of 3 tables of 128 rows of 48 KB.
  EXPECT_EQ(peer_bytes(2), std::size_t{2} * 3 * 128 * 49152);
}

}  // namespace
}  // namespace ostro::cuda
