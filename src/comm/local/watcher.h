// Rank 0's thread that sees the other ranks end.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log.h"
#include "comm/local/shared.h"

namespace ostro::comm::local {

// Turns the end of a child into a Failure, unless the child had finished; exits this process if it
// does not end by itself after a failure (comm/local/launch.h).
class Watcher {
 public:
  // pids[i] is rank i + 1.
  Watcher(SharedMemory& memory, const std::vector<pid_t>& pids, Log log);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  // Waits until all children have ended by themselves; kills those that take too long, which is a
  // Failure if there is none yet. Afterwards no child is left.
  void end_children();

 private:
  struct Child {
    int rank;
    pid_t pid;
    int pidfd;
    std::atomic<bool> living{true};
  };

  void watch();
  void reap(Child& child);
  void kill_living();
  bool any_living() const;
  [[noreturn]] void exit_for_main();

  SharedMemory& memory_;
  Log log_;
  std::vector<std::unique_ptr<Child>> children_;
  int wake_fd_ = -1;  // an eventfd that ends watch()
  std::atomic<bool> main_is_ending_{false};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable ended_;  // a child's `living` has become false
  std::thread thread_;
};

}  // namespace ostro::comm::local
