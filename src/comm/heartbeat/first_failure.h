// The first failure that a process knows of: its own, or another rank's.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

namespace ostro::comm::heartbeat {

// Any thread may call. Only the first failure is kept.
class FirstFailure {
 public:
  bool is_set() const { return is_set_.load(std::memory_order_acquire); }

  // These need is_set(). `code` is the exit code of the whole program.
  int code() const { return code_; }
  const std::string& text() const { return text_; }

  // False if there was one already.
  bool set(int code, std::string text) {
    const std::lock_guard lock(mutex_);
    if (is_set()) return false;
    code_ = code;
    text_ = std::move(text);
    is_set_.store(true, std::memory_order_release);
    return true;
  }

 private:
  std::atomic<bool> is_set_{false};
  std::mutex mutex_;  // of writers
  int code_ = 0;
  std::string text_;
};

}  // namespace ostro::comm::heartbeat
