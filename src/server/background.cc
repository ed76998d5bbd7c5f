#include "server/background.h"

#include <utility>

namespace ostro::server {

Background::Background(std::size_t threads, std::size_t most_waiting,
                       std::chrono::milliseconds patience)
    : threads_(threads), most_waiting_(most_waiting), patience_(patience) {
  for (std::size_t i = 0; i < threads; ++i) pool_.emplace_back([this] { loop(); });
}

Background::~Background() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  arrived_.notify_all();
  for (std::thread& thread : pool_) thread.join();
}

bool Background::run(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= most_waiting_ || stuck()) return false;
    waiting_.push_back(std::move(work));
  }
  arrived_.notify_one();
  return true;
}

// Under the mutex.
bool Background::stuck() const {
  return at_work_ == threads_ && Clock::now() - all_at_work_ > patience_;
}

void Background::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    arrived_.wait(lock, [&] { return ended_ || !waiting_.empty(); });
    if (ended_) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    if (++at_work_ == threads_) all_at_work_ = Clock::now();
    lock.unlock();
    work();
    work = nullptr;  // what it holds is destroyed without the mutex
    lock.lock();
    --at_work_;
  }
}

}  // namespace ostro::server
