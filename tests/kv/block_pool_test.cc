// kv.single_owner and kv.no_leak, by hand and on random traces.
#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>

#include "base/error.h"
#include "base/math.h"

namespace ostro::kv {
namespace {

TEST(BlockPool, TakesAllOrNothing) {
  BlockPool pool(3);
  EXPECT_FALSE(pool.take(4));
  EXPECT_EQ(pool.free(), 3);
  const auto blocks = pool.take(3);
  ASSERT_TRUE(blocks);
  EXPECT_EQ(std::set<BlockId>(blocks->begin(), blocks->end()), (std::set<BlockId>{0, 1, 2}));
  EXPECT_FALSE(pool.take(1));
}

TEST(BlockPool, SharedBlocksAreFreeAfterTheLastOwner) {
  BlockPool pool(1);
  const BlockId block = pool.take(1)->front();
  pool.share(block);
  pool.give_back(block);
  EXPECT_EQ(pool.free(), 0);
  pool.give_back(block);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_THROW(pool.give_back(block), InternalError);
  EXPECT_THROW(pool.share(block), InternalError);
}

TEST(BlockTable, GrowsByWholeBlocksAndGivesBackBehindAWindow) {
  BlockPool pool(8);
  {
    BlockTable table(pool, 16);
    EXPECT_TRUE(table.grow(1));
    EXPECT_TRUE(table.grow(16));
    EXPECT_EQ(table.blocks().size(), 1u);
    EXPECT_TRUE(table.grow(50));
    EXPECT_EQ(pool.free(), 4);
    table.release_before(15);  // position 15 is still needed
    EXPECT_EQ(pool.free(), 4);
    table.release_before(32);
    EXPECT_EQ(pool.free(), 6);
    EXPECT_EQ(table.blocks()[0], -1);
    EXPECT_EQ(table.blocks()[1], -1);
    EXPECT_GE(table.blocks()[2], 0);
    EXPECT_FALSE(table.grow(16 * 11));
    EXPECT_EQ(table.blocks().size(), 4u);
  }
  EXPECT_EQ(pool.free(), 8);
}

TEST(BlockTable, AForkSharesItsBlocksAndOwnsWhatItWrites) {
  BlockPool pool(8);
  BlockTable first(pool, 16);
  ASSERT_TRUE(first.grow(40));
  first.release_before(16);
  BlockTable second = first.fork();
  EXPECT_EQ(second.blocks(), first.blocks());
  EXPECT_EQ(second.held(), 2);
  EXPECT_EQ(pool.free(), 6);
  const BlockId shared = first.blocks()[2];
  std::vector<BlockCopy> copies;
  ASSERT_TRUE(second.own(40, copies));
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].from, shared);
  EXPECT_EQ(copies[0].to, second.blocks()[2]);
  EXPECT_NE(second.blocks()[2], shared);
  ASSERT_TRUE(first.own(40, copies));
  EXPECT_EQ(copies.size(), 1u) << "the last owner writes where it is";
  EXPECT_EQ(first.blocks()[2], shared);
  EXPECT_EQ(pool.owners(first.blocks()[1]), 2);

  BlockTable beginning = first.fork(2);
  EXPECT_EQ(beginning.blocks(), (std::vector<BlockId>{-1, first.blocks()[1]}));
  first.clear();
  second = std::move(beginning);
  EXPECT_EQ(second.blocks().size(), 2u);
  EXPECT_EQ(pool.free(), 7);
  second.clear();
  EXPECT_EQ(pool.free(), 8);
}

TEST(BlockTable, AFullPoolGivesNoBlockToOwn) {
  BlockPool pool(1);
  BlockTable first(pool, 16);
  ASSERT_TRUE(first.grow(4));
  const BlockTable second = first.fork();
  std::vector<BlockCopy> copies;
  EXPECT_FALSE(first.own(4, copies));
  EXPECT_TRUE(copies.empty());
  EXPECT_EQ(first.blocks(), second.blocks());
  EXPECT_EQ(pool.owners(0), 2);
}

// Random sequences come, grow, slide and go; after each step no block has two owners and the sum is
// constant.
TEST(BlockTable, RandomTracesNeitherLeakNorShareABlock) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  BlockPool pool(40);
  std::vector<std::unique_ptr<BlockTable>> tables;
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 100000; ++i) {
    const unsigned action = rng() % 4;
    if (action == 0 && tables.size() < 10) {
      tables.push_back(std::make_unique<BlockTable>(pool, 8));
      lengths.push_back(0);
    } else if (action == 1 && !tables.empty()) {
      const std::size_t t = rng() % tables.size();
      tables.erase(tables.begin() + std::ptrdiff_t(t));
      lengths.erase(lengths.begin() + std::ptrdiff_t(t));
    } else if (!tables.empty()) {
      const std::size_t t = rng() % tables.size();
      const std::int64_t longer = lengths[t] + std::int64_t(rng() % 20);
      if (tables[t]->grow(longer)) lengths[t] = longer;
      if (action == 3) tables[t]->release_before(lengths[t] - 24);
    }
    std::set<BlockId> owned;
    std::size_t count = 0;
    for (std::size_t t = 0; t < tables.size(); ++t) {
      ASSERT_EQ(std::int64_t(tables[t]->blocks().size()), ceil_div<std::int64_t>(lengths[t], 8));
      for (BlockId b : tables[t]->blocks())
        if (b >= 0) {
          owned.insert(b);
          ++count;
        }
    }
    ASSERT_EQ(owned.size(), count);
    ASSERT_EQ(pool.free() + std::int64_t(count), pool.total());
  }
  tables.clear();
  EXPECT_EQ(pool.free(), pool.total());
}

}  // namespace
}  // namespace ostro::kv
