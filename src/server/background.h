// A few threads for what would hold up the server's thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ostro::server {

// Work is begun in the order in which it comes. The destructor waits for what has begun and drops
// the rest.
class Background {
 public:
  Background(std::size_t threads, std::size_t most_waiting, std::chrono::milliseconds patience);
  ~Background();

  // False if as much waits as may, or if all threads are at work and none has got done for longer
  // than `patience`: a burst of short work has its turn, but nobody is sent to wait behind long
  // work. `work` must not throw.
  [[nodiscard]] bool run(std::function<void()> work);

 private:
  using Clock = std::chrono::steady_clock;

  void loop();
  bool stuck() const;

  const std::size_t threads_;
  const std::size_t most_waiting_;
  const std::chrono::milliseconds patience_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::function<void()>> waiting_;
  std::size_t at_work_ = 0;        // threads
  Clock::time_point all_at_work_;  // since when, if all are
  bool ended_ = false;
  std::vector<std::thread> pool_;
};

}  // namespace ostro::server
