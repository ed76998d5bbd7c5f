// Reuse of full blocks: exact, isolated by salt, least recently used first to go.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

#include "base/error.h"
#include "base/math.h"
#include "kv/block_pool.h"

namespace ostro::kv {
namespace {

constexpr std::int64_t kBlock = 4;
using Tokens = std::vector<std::int32_t>;

Tokens counted(std::int32_t from, std::size_t n) {
  Tokens t(n);
  for (std::size_t i = 0; i < n; ++i) t[i] = from + std::int32_t(i);
  return t;
}

// Computes `tokens` in a table of its own and drops it, so that its full blocks are cached.
void compute(BlockPool& pool, const Tokens& tokens, std::string_view salt = {}) {
  BlockTable table(pool, kBlock);
  ASSERT_TRUE(table.grow(std::int64_t(tokens.size())));
  table.publish(tokens, std::int64_t(tokens.size()), salt);
}

std::int64_t known(BlockPool& pool, const Tokens& tokens, std::string_view salt = {}) {
  BlockTable table(pool, kBlock);
  return table.reuse(tokens, std::int64_t(tokens.size()), salt);
}

TEST(PrefixReuse, FindsTheLongestCommonBeginningOfFullBlocks) {
  BlockPool pool(8);
  compute(pool, counted(0, 11));
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(pool.free(), 6);
  EXPECT_EQ(known(pool, counted(0, 11)), 8);
  EXPECT_EQ(known(pool, counted(0, 7)), 4);
  EXPECT_EQ(known(pool, counted(1, 11)), 0);
  Tokens other = counted(0, 8);
  other[7] = 99;
  EXPECT_EQ(known(pool, other), 4);
  Tokens swapped = counted(4, 4);  // a block that is known, but not at the beginning
  EXPECT_EQ(known(pool, swapped), 0);
  pool.check();
}

TEST(PrefixReuse, SharesWithOneThatStillRuns) {
  BlockPool pool(8);
  BlockTable first(pool, kBlock);
  ASSERT_TRUE(first.grow(10));
  first.publish(counted(0, 10), 10, {});
  BlockTable second(pool, kBlock);
  EXPECT_EQ(second.match(counted(0, 10), 10, {}).blocks, 2);
  EXPECT_EQ(second.match(counted(0, 10), 10, {}).cached, 0);
  EXPECT_EQ(second.match(counted(0, 10), 10, {}).shared, 0) << "of one owner";
  EXPECT_EQ(second.match(counted(0, 10), 7, {}).blocks, 1) << "at most the positions below 7";
  EXPECT_EQ(second.reuse(counted(0, 10), 10, {}), 8);
  EXPECT_EQ(second.blocks()[1], first.blocks()[1]);
  EXPECT_EQ(first.held(), 3);
  EXPECT_EQ(first.shared(), 2);
  const BlockTable third(pool, kBlock);
  EXPECT_EQ(third.match(counted(0, 10), 10, {}).shared, 2);
  EXPECT_EQ(pool.owners(first.blocks()[1]), 2);
  EXPECT_EQ(pool.free(), 5);
  first.clear();
  EXPECT_EQ(pool.cached(), 0);
  second.clear();
  EXPECT_EQ(pool.cached(), 2);
  pool.check();
}

TEST(PrefixReuse, ContinuesWhereItEnded) {
  BlockPool pool(8);
  compute(pool, counted(0, 4));
  BlockTable table(pool, kBlock);
  EXPECT_EQ(table.reuse(counted(0, 12), 11, {}), 4);
  compute(pool, counted(0, 8));
  EXPECT_EQ(table.reuse(counted(0, 12), 11, {}), 4);
  compute(pool, counted(0, 12));
  ASSERT_TRUE(table.grow(9));
  EXPECT_EQ(table.reuse(counted(0, 12), 12, {}), 0) << "it has a block of its own there";
  EXPECT_EQ(table.blocks().size(), 3u);
}

TEST(PrefixReuse, SaltsDoNotMeet) {
  BlockPool pool(8);
  compute(pool, counted(0, 8), "a");
  EXPECT_EQ(known(pool, counted(0, 8)), 0);
  EXPECT_EQ(known(pool, counted(0, 8), "b"), 0);
  EXPECT_EQ(known(pool, counted(0, 8), "a"), 8);
}

TEST(PrefixReuse, ForgetsTheOneUnusedForLongestAndTheEndBeforeTheBeginning) {
  BlockPool pool(6);
  compute(pool, counted(0, 8));
  compute(pool, counted(100, 8));
  EXPECT_EQ(known(pool, counted(0, 8)), 8);  // used again: the other is the older one now
  BlockTable table(pool, kBlock);
  ASSERT_TRUE(table.grow(3 * kBlock));
  EXPECT_EQ(known(pool, counted(100, 8)), 4);
  EXPECT_EQ(known(pool, counted(0, 8)), 8);
  EXPECT_FALSE(table.grow(7 * kBlock));
  ASSERT_TRUE(table.grow(6 * kBlock));
  EXPECT_EQ(pool.index().size(), 0u);
  pool.check();
}

TEST(PrefixReuse, OneNameForEqualBlocksOfTwoSequences) {
  BlockPool pool(8);
  BlockTable first(pool, kBlock), second(pool, kBlock);
  ASSERT_TRUE(first.grow(8) && second.grow(8));
  first.publish(counted(0, 8), 8, {});
  second.publish(counted(0, 8), 4, {});
  second.publish(counted(0, 8), 8, {});
  EXPECT_EQ(pool.index().size(), 2u);
  first.clear();
  second.clear();
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(pool.free(), 6);
  pool.check();
}

// Sequences over a tiny alphabet come, reuse, grow, publish, slide and go. At each step every block
// has as many owners as tables hold it, the rest is free or cached, and what a table reuses is what
// a model of the memory's content says it must hold.
TEST(PrefixReuse, RandomTraces) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  struct Live {
    std::unique_ptr<BlockTable> table;
    Tokens tokens;
    std::string salt;
    std::int64_t computed = 0;
  };
  BlockPool pool(24);
  std::vector<Live> live;
  std::map<BlockId, std::pair<std::string, Tokens>> content;  // salt, all tokens up to its end
  std::int64_t reused = 0;
  for (int i = 0; i < 100000; ++i) {
    if (rng() % 4 == 0 && live.size() < 6) {
      Live l{std::make_unique<BlockTable>(pool, kBlock), {}, rng() % 8 ? "" : "salt", 0};
      for (std::size_t n = 1 + rng() % 30; n > 0; --n) l.tokens.push_back(std::int32_t(rng() % 2));
      l.computed = l.table->reuse(l.tokens, std::int64_t(l.tokens.size()) - 1, l.salt);
      reused += l.computed;
      for (std::int64_t b = 0; b < l.computed / kBlock; ++b) {
        const auto& [salt, tokens] = content.at(l.table->blocks()[std::size_t(b)]);
        ASSERT_EQ(salt, l.salt);
        ASSERT_EQ(tokens, Tokens(l.tokens.begin(), l.tokens.begin() + (b + 1) * kBlock));
      }
      live.push_back(std::move(l));
    } else if (rng() % 6 == 0 && !live.empty()) {
      live.erase(live.begin() + std::ptrdiff_t(rng() % live.size()));
    } else if (!live.empty()) {
      Live& l = live[rng() % live.size()];
      if (rng() % 3 == 0) l.table->release_before(l.computed - 9);
      const std::int64_t end =
          std::min(l.computed + std::int64_t(rng() % 7), std::int64_t(l.tokens.size()));
      if (l.table->grow(end)) {
        for (std::int64_t p = l.computed; p < end; ++p)
          if ((p + 1) % kBlock == 0)
            content[l.table->blocks()[std::size_t(p / kBlock)]] = {
                l.salt, Tokens(l.tokens.begin(), l.tokens.begin() + p + 1)};
        l.computed = end;
        l.table->publish(l.tokens, l.computed, l.salt);
      }
    }
    std::map<BlockId, std::int32_t> owners;
    for (const Live& l : live)
      for (BlockId b : l.table->blocks())
        if (b >= 0) ++owners[b];
    for (const auto& [block, count] : owners) ASSERT_EQ(pool.owners(block), count);
    ASSERT_EQ(pool.available() + std::int64_t(owners.size()), pool.total());
    pool.check();
  }
  EXPECT_GT(reused, 10000);
  live.clear();
  EXPECT_EQ(pool.available(), pool.total());
}

}  // namespace
}  // namespace ostro::kv
