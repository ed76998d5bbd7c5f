#include "comm/local/group.h"

#include <gtest/gtest.h>

#include "comm/collectives.h"
#include "comm/local/run_ranks.h"

namespace ostro::comm::testing {
namespace {

using Case = void (*)(Communicator&);

class LocalGroup : public ::testing::TestWithParam<int> {
 protected:
  void expect_all_do(Case body, const local::Options& options = {}) {
    const Ending end = run_ranks(
        GetParam(), [&](World& world) { body(world.communicator()); }, options);
    EXPECT_EQ(end.code, 0) << end.message;
    EXPECT_EQ(end.message, "");
    EXPECT_TRUE(end.none_left);
  }
};

TEST_P(LocalGroup, SumsInRankOrder) { expect_all_do(sums_in_rank_order); }
TEST_P(LocalGroup, SumsARowAlikeInAnyMatrix) { expect_all_do(sums_a_row_alike_in_any_matrix); }
TEST_P(LocalGroup, GathersColumns) { expect_all_do(gathers_columns); }
TEST_P(LocalGroup, PassesMessagesAround) { expect_all_do(passes_messages_around); }
TEST_P(LocalGroup, GoesOnAfterBufferedSends) { expect_all_do(goes_on_after_buffered_sends); }
TEST_P(LocalGroup, WaitsForAMessageLongerThanForAStep) {
  expect_all_do(waits_for_a_message, {.stall_seconds = 0.1});
}
TEST_P(LocalGroup, BroadcastsFromEveryRoot) { expect_all_do(broadcasts_from_every_root); }
TEST_P(LocalGroup, HoldsAtTheBarrier) { expect_all_do(holds_at_the_barrier); }
TEST_P(LocalGroup, SplitsIntoGroups) { expect_all_do(splits_into_groups); }
TEST_P(LocalGroup, KeepsGroupsApart) { expect_all_do(keeps_groups_apart); }

// Slots and rings so small that everything goes in many pieces.
TEST_P(LocalGroup, MovesInSmallPieces) {
  const local::Options tiny{.slot_bytes = 2048, .ring_bytes = 1024};
  expect_all_do(
      [](Communicator& world) {
        gathers_columns(world);
        keeps_groups_apart(world);
        sums_a_row_alike_in_any_matrix(world);
      },
      tiny);
}

INSTANTIATE_TEST_SUITE_P(Ranks, LocalGroup, ::testing::Values(1, 2, 3, 4));

TEST(LocalGroupMistakes, DifferentCallsAreABug) {
  const Ending end = run_ranks(2, [](World& world) {
    if (world.communicator().rank() == 0)
      world.communicator().barrier();
    else
      world.communicator().split(0, 0);
  });
  EXPECT_EQ(end.code, 5);
  EXPECT_NE(end.message.find("split of 8 bytes"), std::string::npos) << end.message;
  EXPECT_NE(end.message.find("barrier of 0 bytes"), std::string::npos) << end.message;
}

TEST(LocalGroupMistakes, AMessageOfAnotherSizeIsABug) {
  const Ending end = run_ranks(2, [](World& world) {
    float x[3] = {};
    Communicator& all = world.communicator();
    if (all.rank() == 1)
      all.send(matrix(x, DType::f32, 1, 3), 0);
    else
      all.receive(matrix(x, DType::f32, 1, 2), 1);
  });
  EXPECT_EQ(end.code, 5);
  EXPECT_NE(end.message.find("sends 12 bytes and rank 0 receives 8"), std::string::npos)
      << end.message;
}

TEST(LocalGroupMistakes, BuffersBeyondTheRoomAreRefused) {
  const Ending end = run_ranks(2, [](World& world) {
    Communicator& all = world.communicator();
    all.buffer_sends(1 - all.rank(), std::size_t{1} << 30);
  });
  EXPECT_EQ(end.code, 4);
  EXPECT_NE(end.message.find("1073741824 bytes may be on their way from rank "), std::string::npos)
      << end.message;
}

TEST(LocalGroupMistakes, TooManySplitsAreRefused) {
  const Ending end = run_ranks(2,
                               [](World& world) {
                                 for (int i = 0; i < 5; ++i) world.communicator().split(0, 0);
                               },
                               {.splits = 2, .buffer_bytes = 0});
  EXPECT_EQ(end.code, 4);
  EXPECT_NE(end.message.find("bytes for another group of ranks"), std::string::npos) << end.message;
}

}  // namespace
}  // namespace ostro::comm::testing
