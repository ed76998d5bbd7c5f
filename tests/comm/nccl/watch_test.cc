#include "comm/nccl/watch.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace ostro::comm::nccl {
namespace {

class FakeMember : public Watch::Member {
 public:
  void throw_if_failed() override {
    ++looked;
    if (!failure.empty()) OSTRO_THROW(DeviceError, failure);
  }
  void abort() noexcept override { ++aborted; }

  std::string failure;
  int looked = 0, aborted = 0;
};

// A queue that has come past the marks in `passed`.
struct FakeQueue {
  std::vector<std::size_t> set;
  std::set<std::size_t> passed;

  Watch::Marks marks() {
    return {.set = [this](std::size_t slot) { set.push_back(slot); },
            .passed = [this](std::size_t slot) { return passed.contains(slot); }};
  }
};

std::string message_of_turn(Watch& watch, double seconds) {
  try {
    watch.turn(seconds);
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

const std::string kGroup = "ranks 0, 1";

TEST(Watch, LetsAWaitGoOnWhileAllIsWell) {
  FakeQueue queue;
  FakeMember member;
  Watch watch(0, 10, queue.marks());
  watch.add(member);
  watch.called({.name = "send", .bytes = 8, .group = &kGroup});
  for (double t = 0; t <= 10; t += 0.5) EXPECT_EQ(message_of_turn(watch, t), "");
  EXPECT_GT(member.looked, 10);
  EXPECT_EQ(member.aborted, 0);
}

TEST(Watch, LooksAtMembersNowAndThenAndInEveryWait) {
  FakeQueue queue;
  FakeMember member;
  Watch watch(0, 10, queue.marks());
  watch.add(member);
  for (int i = 0; i < 100; ++i) watch.turn(1e-6 * i);
  EXPECT_EQ(member.looked, 0);  // a step that ends soon asks nobody
  watch.turn(5);
  EXPECT_EQ(member.looked, 1);
  watch.turn(5.001);
  EXPECT_EQ(member.looked, 1);
  watch.turn(0.5);  // the next wait
  EXPECT_EQ(member.looked, 2);
}

TEST(Watch, EndsAWaitWithAMembersFailureAndAbortsAll) {
  FakeQueue queue;
  FakeMember one, two, gone;
  Watch watch(0, 10, queue.marks());
  watch.add(one);
  watch.add(gone);
  watch.add(two);
  watch.remove(gone);
  two.failure = "rank 1 on node2 (pid 3) is gone";
  EXPECT_EQ(message_of_turn(watch, 0.1), "rank 1 on node2 (pid 3) is gone");
  EXPECT_EQ(one.aborted, 1);
  EXPECT_EQ(two.aborted, 1);
  EXPECT_EQ(gone.looked + gone.aborted, 0);
}

TEST(Watch, NamesTheOldestCallThatHasNotEnded) {
  FakeQueue queue;
  FakeMember member;
  Watch watch(3, 10, queue.marks());
  watch.add(member);
  watch.called({.name = "all_reduce_sum", .bytes = 64, .group = &kGroup});
  watch.called({.name = "all_gather_columns", .bytes = 128, .group = &kGroup});
  watch.called({.name = "send", .bytes = 256, .group = &kGroup});
  queue.passed = {queue.set[0]};
  EXPECT_EQ(message_of_turn(watch, 10.1),
            "all_gather_columns of 128 bytes of ranks 0, 1 (call 2 of rank 3) has not ended after "
            "10 s (--comm_timeout)");
  EXPECT_EQ(member.aborted, 1);
}

TEST(Watch, SaysThatARecordedStepHasNotEnded) {
  FakeQueue queue;
  Watch watch(1, 10, queue.marks());
  for (std::size_t i = 0; i < Watch::kSlots + 3; ++i)
    watch.called({.name = "send", .bytes = i, .group = &kGroup});
  queue.passed.insert(queue.set.begin(), queue.set.end());
  EXPECT_EQ(queue.set.back(), 2u);  // marks are used in turn
  EXPECT_EQ(message_of_turn(watch, 11),
            text("a recorded step of rank 1, after its call ", Watch::kSlots + 3,
                 ", has not ended after 10 s (--comm_timeout)"));
}

}  // namespace
}  // namespace ostro::comm::nccl
