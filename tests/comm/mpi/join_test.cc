// Runs tests/comm/mpi/ranks_main.cc under mpirun and looks at how it ends.
#include "comm/mpi/join.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/clock.h"

namespace ostro::comm {
namespace {

struct Ending {
  int code = 0;
  std::string output;  // of all ranks and mpirun
  double seconds = 0;
};

Ending mpirun(int ranks, const std::string& what) {
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  const std::string command =
      text("mpirun --oversubscribe -n ", ranks, " ", OSTRO_MPI_RANKS, " ", what, " 2>&1");
  const Stopwatch watch;
  FILE* pipe = ::popen(command.c_str(), "r");
  Ending end;
  char line[1024];
  while (std::fgets(line, sizeof(line), pipe)) end.output += line;
  const int status = ::pclose(pipe);
  end.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  end.seconds = watch.seconds();
  return end;
}

std::string host() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(MpiRanks, DoWhatEveryTransportDoes) {
  for (const int ranks : {1, 2, 4}) {
    const Ending end = mpirun(ranks, "collectives");
    EXPECT_EQ(end.code, 0) << ranks << " ranks: " << end.output;
  }
}

TEST(MpiRanks, WaitForWorkWithoutBurningACore) {
  const Ending end = mpirun(3, "idle");
  EXPECT_EQ(end.code, 0) << end.output;
}

TEST(MpiRanks, AFailingRankSpeaksAndEndsTheOthers) {
  const Ending end = mpirun(3, "fail");
  EXPECT_EQ(end.code, 3) << end.output;
  EXPECT_EQ(count(end.output, "rank 2 on " + host() + ": layer 7 is missing\n"), 1) << end.output;
  EXPECT_LT(end.seconds, 5);
}

TEST(MpiRanks, WhatAllRanksFindIsSaidOnce) {
  const Ending end = mpirun(4, "all_fail");
  EXPECT_EQ(end.code, 2) << end.output;
  EXPECT_EQ(count(end.output, "there is no engine in x"), 1) << end.output;
}

TEST(MpiRanks, AKilledRankIsNamedByMpirun) {
  const Ending end = mpirun(3, "die");
  EXPECT_EQ(end.code, 137) << end.output;
  EXPECT_EQ(count(end.output, "process rank 2"), 1) << end.output;
  EXPECT_EQ(count(end.output, "exited on signal 9 (Killed)"), 1) << end.output;
  EXPECT_LT(end.seconds, 5);
}

TEST(MpiRanks, ARankThatDoesNotComeIsNamedAfterTheTimeOut) {
  const Ending end = mpirun(3, "stop");
  EXPECT_EQ(end.code, 4) << end.output;
  EXPECT_EQ(count(end.output, "all_reduce_sum waited "), 1) << end.output;
  EXPECT_GE(count(end.output, "waited 0.5 s for rank 2\n"), 1) << end.output;
  EXPECT_LT(end.seconds, 5);
}

}  // namespace
}  // namespace ostro::comm
