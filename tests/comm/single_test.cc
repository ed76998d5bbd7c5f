#include <gtest/gtest.h>

#include "comm/collectives.h"
#include "comm/world.h"

namespace ostro::comm {
namespace {

TEST(Single, DoesWhatEveryTransportDoes) { testing::check_collectives(*make_single()); }

TEST(Single, RefusesWhatBreaksTheContract) {
  const auto single = make_single();
  float x[12] = {};
  const View strided{x, DType::f32, Device::cpu, 2, 3, 6};
  EXPECT_THROW(single->all_reduce_sum(strided), InternalError);
  EXPECT_THROW(single->all_reduce_sum(matrix(x, DType::bf16, 2, 3)), InternalError);
  EXPECT_NO_THROW(single->all_reduce_sum(matrix(x, DType::f32, 1, 3, Device::cuda)));
  EXPECT_THROW(single->all_gather_columns(matrix(x, DType::f32, 2, 2), matrix(x, DType::f32, 2, 3)),
               InternalError);
  EXPECT_THROW(single->send(matrix(x, DType::f32, 1, 1), 0), InternalError);
  EXPECT_THROW(single->receive(matrix(x, DType::f32, 1, 1), 1), InternalError);
  EXPECT_THROW(single->wait_for_message(0), InternalError);
  EXPECT_THROW(single->buffer_sends(0, 1), InternalError);
  EXPECT_THROW(single->broadcast({}, 1), InternalError);
  EXPECT_THROW(single->split(-1, 0), InternalError);
}

TEST(Single, WorldEndsWithItsOwnResult) {
  const auto world = make_single_world();
  EXPECT_EQ(world->ranks_on_this_host(), 1);
  EXPECT_EQ(world->rank_on_this_host(), 0);
  const Outcome end = world->finish(3, "no");
  EXPECT_EQ(end.code, 3);
  EXPECT_EQ(end.message, "no");
}

}  // namespace
}  // namespace ostro::comm
