// A few threads for what would hold up the server's thread.
#pragma once

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
  Background(std::size_t threads, std::size_t most_waiting);
  ~Background();

  // False if as much waits as may. `work` must not throw.
  [[nodiscard]] bool run(std::function<void()> work);

 private:
  void loop();

  const std::size_t most_waiting_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::function<void()>> waiting_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ostro::server
