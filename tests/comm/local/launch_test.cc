// What is left when ranks die, fail, hang or end: one message, the right code, no process, and all
// within the five seconds that comm/local/launch.h promises.
#include "comm/local/launch.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "comm/local/run_ranks.h"

namespace ostro::comm::testing {
namespace {

using namespace std::chrono_literals;

constexpr double kLimitSeconds = 5;

void reduce_for_ever(World& world) {
  std::vector<float> x(100'000);
  while (true)
    world.communicator().all_reduce_sum(
        matrix(x.data(), DType::f32, 1, static_cast<std::int64_t>(x.size())));
}

void hang() {
  while (true) std::this_thread::sleep_for(1s);
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

void expect_gone(const Ending& end) {
  EXPECT_LT(end.seconds, kLimitSeconds);
  EXPECT_TRUE(end.none_left);
}

TEST(LocalRanks, AKilledRankEndsTheOthersByName) {
  const Ending end = run_ranks(3, [](World& world) {
    if (world.communicator().rank() == 2)
      std::thread([] {
        std::this_thread::sleep_for(100ms);
        ::kill(::getpid(), SIGKILL);
      }).detach();
    reduce_for_ever(world);
  });
  EXPECT_EQ(end.code, 4);
  EXPECT_HAS(end.message, "rank 2 (pid ");
  EXPECT_HAS(end.message, ") was killed by signal 9 (Killed)");
  EXPECT_EQ(end.log, "");
  EXPECT_LT(end.seconds, 1.5);  // the collectives throw within one
  expect_gone(end);
}

TEST(LocalRanks, AKilledRankEndsThoseThatWaitForWork) {
  const Ending end = run_ranks(4, [](World& world) {
    std::byte plan[64];
    if (world.communicator().rank() == 3) ::raise(SIGABRT);
    world.communicator().broadcast(plan, 3);
  });
  EXPECT_EQ(end.code, 4);
  EXPECT_HAS(end.message, "rank 3 (pid ");
  EXPECT_HAS(end.message, "killed by signal 6 (Aborted)");
  expect_gone(end);
}

TEST(LocalRanks, AFailingRanksMessageAndCodeAreThePrograms) {
  for (const int code : {2, 3, 4, 5}) {
    const Ending end = run_ranks(3, [code](World& world) {
      if (world.communicator().rank() == 1) {
        if (code == 2) OSTRO_THROW(InvalidArgument, "layer ", 7, " is missing");
        if (code == 3) OSTRO_THROW(Unsupported, "layer ", 7, " is missing");
        if (code == 4) OSTRO_THROW(DeviceError, "layer ", 7, " is missing");
        OSTRO_THROW(InternalError, "layer ", 7, " is missing");
      }
      reduce_for_ever(world);
    });
    EXPECT_EQ(end.code, code);
    EXPECT_HAS(end.message, "rank 1 (pid ");
    EXPECT_HAS(end.message, "): layer 7 is missing");
    expect_gone(end);
  }
}

TEST(LocalRanks, WhatAllRanksFindIsSaidOnceByRankZero) {
  const Ending end =
      run_ranks(4, [](World&) { OSTRO_THROW(InvalidArgument, "there is no engine in x"); });
  EXPECT_EQ(end.code, 2);
  EXPECT_EQ(end.message, "there is no engine in x");
  expect_gone(end);
}

TEST(LocalRanks, RankZerosFailureEndsTheOthers) {
  const Ending end = run_ranks(3, [](World& world) {
    if (world.communicator().rank() == 0) OSTRO_THROW(Unsupported, "no such thing");
    reduce_for_ever(world);
  });
  EXPECT_EQ(end.code, 3);
  EXPECT_EQ(end.message, "no such thing");
  expect_gone(end);
}

TEST(LocalRanks, AStoppedRankIsNamedAfterTheTimeOut) {
  const Ending end = run_ranks(3,
                               [](World& world) {
                                 if (world.communicator().rank() == 1) ::raise(SIGSTOP);
                                 reduce_for_ever(world);
                               },
                               {.stall_seconds = 0.5});
  EXPECT_EQ(end.code, 4);
  EXPECT_HAS(end.message, "all_reduce_sum of 400000 bytes on rank ");
  EXPECT_HAS(end.message, "waited 0.5 s for rank 1 (pid ");
  expect_gone(end);
}

TEST(LocalRanks, AMessageThatDoesNotComeIsNamedAfterTheTimeOut) {
  const Ending end = run_ranks(2,
                               [](World& world) {
                                 float x = 0;
                                 if (world.communicator().rank() == 1) hang();
                                 world.communicator().receive(matrix(&x, DType::f32, 1, 1), 1);
                               },
                               {.stall_seconds = 0.3});
  EXPECT_EQ(end.code, 4);
  EXPECT_HAS(end.message, "receive on rank 0 waited 0.3 s for rank 1 (pid ");
  expect_gone(end);
}

TEST(LocalRanks, WaitingForWorkHasNoTimeOut) {
  const Ending end = run_ranks(3,
                               [](World& world) {
                                 if (world.communicator().rank() == 0)
                                   std::this_thread::sleep_for(500ms);
                                 std::byte plan[64];
                                 world.communicator().broadcast(plan, 0);
                                 if (world.communicator().rank() == 1)
                                   std::this_thread::sleep_for(500ms);
                                 world.communicator().barrier();
                               },
                               {.stall_seconds = 0.1});
  EXPECT_EQ(end.code, 0) << end.message;
  expect_gone(end);
}

TEST(LocalRanks, ARankThatLeavesEarlyIsNamed) {
  const Ending finished = run_ranks(2, [](World& world) {
    if (world.communicator().rank() == 0) reduce_for_ever(world);
  });
  EXPECT_EQ(finished.code, 4);
  EXPECT_HAS(finished.message, "rank 1 (pid ");
  EXPECT_HAS(finished.message, "has finished while rank 0 waits for it in all_reduce_sum");
  expect_gone(finished);

  const Ending exited = run_ranks(2, [](World& world) {
    if (world.communicator().rank() == 1) ::_exit(0);
    reduce_for_ever(world);
  });
  EXPECT_EQ(exited.code, 4);
  EXPECT_HAS(exited.message, "exited in the middle of its work");
  expect_gone(exited);

  const Ending code = run_ranks(2, [](World& world) {
    if (world.communicator().rank() == 1) ::_exit(77);
    reduce_for_ever(world);
  });
  EXPECT_EQ(code.code, 4);
  EXPECT_HAS(code.message, "exited with code 77");
  expect_gone(code);
}

TEST(LocalRanks, AHangingRankZeroIsEndedForAfterAFailure) {
  const Ending end = run_ranks(3, [](World& world) {
    if (world.communicator().rank() == 1) ::raise(SIGKILL);
    hang();
  });
  EXPECT_EQ(end.code, 4);
  EXPECT_EQ(end.message, "");
  EXPECT_HAS(end.log, "rank 1 (pid ");
  EXPECT_HAS(end.log, "killed by signal 9 (Killed)\n");
  EXPECT_EQ(std::count(end.log.begin(), end.log.end(), '\n'), 1);
  expect_gone(end);
}

TEST(LocalRanks, RanksDieWithRankZero) {
  const Ending end = run_ranks(3, [](World& world) {
    if (world.communicator().rank() == 0) {
      std::this_thread::sleep_for(50ms);
      ::raise(SIGKILL);
    }
    hang();
  });
  EXPECT_EQ(end.code, -SIGKILL);
  expect_gone(end);
}

TEST(LocalRanks, OnlyRankZeroHearsTheTerminal) {
  const Ending end = run_ranks(3, [](World& world) {
    const bool first = world.communicator().rank() == 0;
    if (first) std::signal(SIGINT, SIG_IGN);  // as a server that drains
    world.communicator().barrier();
    if (first) ::kill(0, SIGINT);
    std::byte in;
    if (!first)
      OSTRO_CHECK(::read(STDIN_FILENO, &in, 1) == 0, "rank ", world.communicator().rank(),
                  " reads the program's input");
    world.communicator().barrier();
  });
  EXPECT_EQ(end.code, 0) << end.message;
  expect_gone(end);
}

TEST(LocalRanks, AreCounted) {
  const Ending end = run_ranks(4, [](World& world) {
    OSTRO_CHECK(
        world.ranks_on_this_host() == 4 && world.rank_on_this_host() == world.communicator().rank(),
        world.rank_on_this_host(), " of ", world.ranks_on_this_host());
  });
  EXPECT_EQ(end.code, 0) << end.message;
  for (const int ranks : {0, -1, 65}) {
    try {
      local::start_ranks(ranks);
      ADD_FAILURE() << ranks;
    } catch (const InvalidArgument& error) {
      EXPECT_HAS(std::string(error.what()), "it can be 1 to 64");
    }
  }
}

// Waiting ranks must leave the cores to those that work.
TEST(LocalRanks, WaitingCostsAlmostNothing) {
  const Ending end = run_ranks(3, [](World& world) {
    std::byte plan[64];
    if (world.communicator().rank() == 0) {
      std::this_thread::sleep_for(1s);
      world.communicator().broadcast(plan, 0);
      return;
    }
    const std::clock_t before = std::clock();
    world.communicator().broadcast(plan, 0);
    const double used = double(std::clock() - before) / CLOCKS_PER_SEC;
    OSTRO_CHECK(used < 0.02, "a second of waiting took ", used, " s of a core");
  });
  EXPECT_EQ(end.code, 0) << end.message;
}

}  // namespace
}  // namespace ostro::comm::testing
