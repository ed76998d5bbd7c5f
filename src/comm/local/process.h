// This process among the ranks of one machine, and the one way in which they wait for each other.
#pragma once

#include <chrono>
#include <cstdint>

#include "comm/local/shared.h"

namespace ostro::comm::local {

enum class Wait {
  reached,
  stalled,   // the time-out passed
  finished,  // the peer ended its part without getting there
};

class Process {
 public:
  Process(SharedMemory& memory, int rank, int ranks, std::chrono::duration<double> stall);

  SharedMemory& memory() { return memory_; }
  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  double stall_seconds() const { return stall_.count(); }

  // "rank 2 (pid 123)"
  std::string describe(int rank) const;

  // Waits until `flag`, which rank `peer` publishes, reaches `target`: spins for as long as a
  // message takes, then sleeps in the kernel. Throws DeviceError with the text of the first
  // failure within a tenth of a second of it. Returns `stalled` only where `timed`.
  Wait wait(const Flag& flag, std::uint32_t target, int peer, bool timed);

  // A wait has thrown another rank's failure: what this rank reports from then on is only that.
  bool knows_failure() const { return knows_failure_; }

  // Throws the first failure, if there is one, as a wait does.
  void throw_if_failed();

 private:
  SharedMemory& memory_;
  int rank_;
  int ranks_;
  std::chrono::duration<double> stall_;
  std::chrono::nanoseconds spin_;
  std::atomic<bool> knows_failure_{false};  // groups may wait on several threads
};

}  // namespace ostro::comm::local
