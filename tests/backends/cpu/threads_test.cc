#include "backends/cpu/threads.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace ostro::cpu {
namespace {

TEST(Threads, EachThreadRunsOnceAndItsWritesAreSeen) {
  for (const int count : {1, 2, 3, 8}) {
    Threads threads(count);
    std::vector<int> calls(std::size_t(count), 0);
    constexpr int kCalls = 2000;
    for (int i = 0; i < kCalls; ++i)
      threads.parallel([&](int thread) { ++calls[std::size_t(thread)]; });
    EXPECT_EQ(calls, std::vector<int>(std::size_t(count), kCalls)) << count << " threads";
  }
}

TEST(Threads, EachItemIsTakenOnce) {
  for (const int count : {1, 2, 5})
    for (const std::int64_t items : {0, 1, 2, 7, 1000}) {
      Threads threads(count);
      for (int round = 0; round < 20; ++round) {
        std::vector<int> taken(std::size_t(items), 0);
        threads.for_each(items, [&](int thread, std::int64_t item) {
          ASSERT_GE(thread, 0);
          ASSERT_LT(thread, count);
          ++taken[std::size_t(item)];
        });
        EXPECT_EQ(std::accumulate(taken.begin(), taken.end(), std::int64_t{0}), items);
        for (const int t : taken) EXPECT_EQ(t, 1);
      }
    }
}

TEST(Threads, WakeAfterTheySlept) {
  Threads threads(3);
  std::atomic<int> calls = 0;
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than a worker's patience
    threads.parallel([&](int) { ++calls; });
  }
  EXPECT_EQ(calls, 15);
}

TEST(Threads, CallerWaitsForASlowWorker) {
  Threads threads(2);
  std::atomic<bool> done = false;
  threads.parallel([&](int thread) {
    if (thread == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    done = true;
  });
  EXPECT_TRUE(done);
}

// More threads than processors: calls must not take a scheduling period each.
TEST(Threads, ManyMoreThanProcessors) {
  Threads threads(4 * available_processors());
  const auto start = std::chrono::steady_clock::now();
  std::atomic<std::int64_t> calls = 0;
  for (int i = 0; i < 200; ++i) threads.parallel([&](int) { ++calls; });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(calls, 200 * threads.count());
  EXPECT_LT(took.count(), 20.0);
}

TEST(Threads, UnusedAreDestroyed) {
  Threads idle(4);
  EXPECT_EQ(idle.count(), 4);
}

TEST(Threads, RefusesNoThreads) { EXPECT_THROW(Threads(0), InvalidArgument); }

}  // namespace
}  // namespace ostro::cpu
