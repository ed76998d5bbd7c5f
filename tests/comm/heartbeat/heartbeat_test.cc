#include "comm/heartbeat/heartbeat.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <functional>
#include <future>
#include <memory>

#include "comm/heartbeat/meeting.h"

namespace ostro::comm::heartbeat {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// The exit code that a Heartbeat ended "the process" with.
std::atomic<int> exit_code;
void remember_exit(int code) { exit_code = code; }

// Ranks of one process; rank r is on hosts[r].
struct Ranks {
  explicit Ranks(const std::vector<std::string>& hosts, Options options = {.limit = 600ms}) {
    exit_code = -1;
    options.exit = remember_exit;
    for (std::size_t r = 0; r < hosts.size(); ++r)
      peers.push_back({.rank = int(r), .host = hosts[r], .pid = int(100 + r)});
    std::vector<Line> rank0;
    for (std::size_t r = 1; r < hosts.size(); ++r) {
      int ends[2];
      ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends);
      rank0.push_back({peers[r], Socket(ends[0])});
      others.push_back(Socket(ends[1]));
    }
    options.log = Log(LogLevel::error, [this](LogLevel, std::string_view line) {
      const std::lock_guard lock(mutex);
      said.emplace_back(line);
    });
    failure.resize(hosts.size());
    beats.resize(hosts.size());
    for (auto& f : failure) f = std::make_unique<FirstFailure>();
    beats[0] = std::make_unique<Heartbeat>(peers[0], std::move(rank0), options, *failure[0]);
    this->options = options;
  }
  // Lets rank r beat; one that does not is silent.
  void start(std::size_t r) {
    std::vector<Line> line;
    line.push_back({peers[0], std::move(others[r - 1])});
    beats[r] = std::make_unique<Heartbeat>(peers[r], std::move(line), options, *failure[r]);
  }
  bool fails(std::size_t r, std::chrono::milliseconds within) const {
    const auto deadline = Clock::now() + within;
    while (!failure[r]->is_set() && Clock::now() < deadline) std::this_thread::sleep_for(5ms);
    return failure[r]->is_set();
  }
  std::vector<std::string> lines() {
    const std::lock_guard lock(mutex);
    return said;
  }

  std::vector<Peer> peers;
  std::vector<Socket> others;
  Options options;
  std::mutex mutex;
  std::vector<std::string> said;
  std::vector<std::unique_ptr<FirstFailure>> failure;
  std::vector<std::unique_ptr<Heartbeat>> beats;
};

TEST(Heartbeat, RanksThatBeatLiveOn) {
  Ranks ranks({"a", "b", "b"});
  ranks.start(1);
  ranks.start(2);
  EXPECT_FALSE(ranks.fails(0, 1500ms));
  for (const int r : {2, 1, 0}) ranks.beats[std::size_t(r)]->stop();
  for (const std::size_t r : {0, 1, 2}) EXPECT_FALSE(ranks.failure[r]->is_set()) << r;
  EXPECT_EQ(ranks.lines().size(), 0u);
}

TEST(Heartbeat, AFarewellIsNoFailure) {
  Ranks ranks({"a", "b"});
  ranks.start(1);
  ranks.beats[1].reset();
  EXPECT_FALSE(ranks.fails(0, 1000ms));
}

TEST(Heartbeat, ADeadRankIsNamedAtOnceAndEverywhere) {
  Ranks ranks({"a", "b", "c"});
  ranks.start(1);
  ranks.others[1] = {};  // the kernel closes what a killed process had open
  EXPECT_TRUE(ranks.fails(0, 300ms));
  EXPECT_TRUE(ranks.fails(1, 300ms));
  const std::string text = "rank 2 on c (pid 102) is gone: it was killed or it crashed";
  EXPECT_EQ(ranks.failure[0]->text(), text);
  EXPECT_EQ(ranks.failure[1]->text(), text);
  EXPECT_EQ(ranks.failure[1]->code(), 4);
  EXPECT_EQ(ranks.lines(), std::vector{text});
  EXPECT_EQ(ranks.beats[0]->found(), Found::dead_rank);
  EXPECT_EQ(ranks.beats[1]->found(), Found::nothing);
}

TEST(Heartbeat, ASilentRankOfALivingHostIsStopped) {
  Ranks ranks({"a", "b", "b"});
  const auto begin = Clock::now();
  ranks.start(2);
  EXPECT_TRUE(ranks.fails(0, 2s));
  EXPECT_GE(Clock::now() - begin, 500ms);
  EXPECT_EQ(ranks.failure[0]->text(),
            "rank 1 on b (pid 101) has been silent for 0.6 s, its host is not: it is stopped or "
            "hangs");
  EXPECT_EQ(ranks.beats[0]->found(), Found::dead_rank);
}

TEST(Heartbeat, AHostWhoseRanksAreAllSilentIsDown) {
  Ranks ranks({"a", "b", "b"});
  EXPECT_TRUE(ranks.fails(0, 2s));
  EXPECT_EQ(ranks.failure[0]->text(),
            "b (ranks 1, 2) has been silent for 0.6 s: it is down, or the network between it and a "
            "is cut");
  EXPECT_EQ(ranks.beats[0]->found(), Found::silent_host);
}

TEST(Heartbeat, OneSilentRankOfAHostMayBeAnything) {
  Ranks ranks({"a", "b"});
  EXPECT_TRUE(ranks.fails(0, 2s));
  EXPECT_EQ(ranks.failure[0]->text(),
            "rank 1 on b (pid 101) has been silent for 0.6 s: it is stopped, its host is down, or "
            "the network between b and a is cut");
}

TEST(Heartbeat, TheOthersSeeRank0Die) {
  Ranks ranks({"a", "b"});
  // Not by its destructor, which says farewell.
  Socket& line = ranks.others[0];
  int ends[2];
  ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends);
  line = Socket(ends[1]);
  ranks.start(1);
  ::close(ends[0]);
  EXPECT_TRUE(ranks.fails(1, 300ms));
  EXPECT_EQ(ranks.failure[1]->text(), "rank 0 on a (pid 100) is gone: it was killed or it crashed");
  EXPECT_EQ(ranks.beats[1]->found(), Found::dead_rank);
}

TEST(Heartbeat, AFailureIsToldToAllWithItsCode) {
  Ranks ranks({"a", "b", "c"});
  ranks.start(1);
  ranks.start(2);
  const std::string text = "rank 2 on c: layer 7 is missing " + std::string(3000, 'x');
  EXPECT_TRUE(ranks.beats[2]->fail(3, text));
  EXPECT_FALSE(ranks.beats[2]->fail(4, "an echo"));
  for (const std::size_t r : {0, 1}) {
    EXPECT_TRUE(ranks.fails(r, 300ms)) << r;
    EXPECT_EQ(ranks.failure[r]->code(), 3);
    EXPECT_EQ(ranks.failure[r]->text(), text);
  }
  EXPECT_EQ(ranks.lines(), std::vector{text});
}

TEST(Heartbeat, AProcessThatDoesNotEndIsEnded) {
  Ranks ranks({"a", "b"}, {.limit = 600ms, .grace = 200ms});
  ranks.others[0] = {};
  EXPECT_TRUE(ranks.fails(0, 300ms));
  std::this_thread::sleep_for(800ms);
  EXPECT_EQ(exit_code, 4);
}

TEST(Heartbeat, AProcessThatEndsIsLeftAlone) {
  Ranks ranks({"a", "b"}, {.limit = 600ms, .grace = 200ms});
  ranks.beats[0]->leave_the_end_to_main();
  ranks.others[0] = {};
  EXPECT_TRUE(ranks.fails(0, 300ms));
  std::this_thread::sleep_for(800ms);
  EXPECT_EQ(exit_code, -1);
}

TEST(Heartbeat, AStrangeByteIsNoHeartbeat) {
  Ranks ranks({"a", "b"});
  ::send(ranks.others[0].fd(), "GET /", 5, 0);
  EXPECT_TRUE(ranks.fails(0, 300ms));
  EXPECT_EQ(ranks.failure[0]->text(), "rank 1 on b (pid 101) sends byte 71, which is no heartbeat");
}

}  // namespace
}  // namespace ostro::comm::heartbeat
