// Ranks that watch each other over sockets of their own, whatever carries their data: rank 0 has a
// connection to every other rank, and both ends of each send a byte every `limit` / 3. A rank whose
// connection ends without a farewell is gone; one that is silent for `limit` is stopped, or its
// host is down or cut off. The thread beats whatever the rank computes: one that is merely slow
// lives on.
//
//   FirstFailure failure;
//   Heartbeat heartbeat(self, std::move(lines), options, failure);
//   ... waits end when failure.is_set() ...
//   heartbeat.stop();              // all went well
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "comm/heartbeat/first_failure.h"
#include "comm/heartbeat/socket.h"

namespace ostro::comm::heartbeat {

struct Peer {
  int rank = 0;
  std::string host;
  int pid = 0;
};

// "rank 3 on node2 (pid 77)"
std::string describe(const Peer&);

// A connection of two ranks that have met (comm/heartbeat/meeting.h).
struct Line {
  Peer peer;
  Socket socket;
};

struct Options {
  std::chrono::milliseconds limit{6000};  // of silence
  // From a failure to the end of the process, if it does not end by itself: its main thread may be
  // where no exception reaches it.
  std::chrono::milliseconds grace{3000};
  // Rank 0: the failure, as soon as it is known. The others: only before they are ended.
  Log log = {};
  // What ends the process; for tests.
  void (*exit)(int code) = nullptr;  // nullptr: _exit
};

// What this rank has found by itself; of other failures it was told, or they are its own.
enum class Found { nothing, dead_rank, silent_host };

class Heartbeat {
 public:
  // Rank 0: a line to every other rank; the others: their line to rank 0.
  Heartbeat(const Peer& self, std::vector<Line> lines, const Options&, FirstFailure& failure);
  // As stop().
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  // This rank has failed: tells the others, whose failure it is from then on. False, and nothing is
  // told, if there was a failure already. `text` names the rank.
  bool fail(int code, const std::string& text);

  Found found() const { return found_; }

  // The main thread ends the process: nothing needs to be done after the grace.
  void leave_the_end_to_main() { main_is_ending_ = true; }

  // Returns when rank 0 has ended or left, or after `time`. Not on rank 0.
  void wait_for_end_of_rank_0(std::chrono::milliseconds time);

  // Says farewell, so that the others do not take the end of this process for a failure.
  void stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Watched {
    Line line;
    Clock::time_point heard;
    std::string unread;  // the beginning of a message
    bool open = true;
  };

  void run();
  void beat();
  void receive(Watched&);
  void take_messages(Watched&);
  void lose(Watched&, const std::string& how);
  void find(Found, const std::string& text);
  void judge_silence();
  void find_silent(const Watched&);
  void tell(const std::string& message);
  void end_process();

  const Peer self_;
  const Options options_;
  FirstFailure& failure_;
  std::mutex mutex_;  // of the sockets' sending side and `open`
  std::vector<Watched> watched_;
  int wake_fd_ = -1;
  std::atomic<bool> stop_{false};
  std::atomic<bool> main_is_ending_{false};
  std::atomic<Found> found_{Found::nothing};
  std::atomic<bool> line_ended_{false};
  std::thread thread_;
};

}  // namespace ostro::comm::heartbeat
