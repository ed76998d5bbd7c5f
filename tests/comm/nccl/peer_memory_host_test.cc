// What keeps ranks from sharing GPU memory and is found before any GPU is asked.
#include <gtest/gtest.h>

#include <cstdlib>

#include "comm/local/run_ranks.h"
#include "comm/nccl/peer_memory.h"

namespace ostro::comm::testing {
namespace {

// Every rank gets the same reason.
void expect_reason(int ranks, const char* reason, void (*prepare)(int rank)) {
  const Ending end = run_ranks(ranks, [&](World& world) {
    Communicator& host = world.communicator();
    prepare(host.rank());
    std::string why = "of another call";
    OSTRO_CHECK(!nccl::PeerMemory::open(host, {}, why), "it opened");
    OSTRO_CHECK(why == reason, why);
  });
  EXPECT_EQ(end.code, 0) << end.message;
  EXPECT_TRUE(end.none_left);
}

TEST(PeerMemoryHost, IsForAFewRanks) {
  expect_reason(9, "they are 9, the most is 8", [](int) {});
}

TEST(PeerMemoryHost, IsOffWhereNcclsPeerAccessIs) {
  expect_reason(3, "rank 1 of the group: NCCL_P2P_DISABLE is 1", [](int rank) {
    if (rank > 0) ::setenv("NCCL_P2P_DISABLE", "1", 1);
  });
}

}  // namespace
}  // namespace ostro::comm::testing
