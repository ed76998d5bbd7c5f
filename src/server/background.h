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
  explicit Background(std::size_t threads);
  ~Background();

  void run(std::function<void()> work);  // which must not throw

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::function<void()>> waiting_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ostro::server
