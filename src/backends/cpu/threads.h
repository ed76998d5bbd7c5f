// A few threads that run one function together, for work of microseconds.
//
//   Threads threads(8);
//   threads.parallel([&](int thread) { ... });              // on all of them; 0 is the caller
//   threads.for_each(items, [&](int thread, std::int64_t item) { ... });   // each item once
//
// A call returns when all threads are done; what they wrote is then visible. Waiting threads spin
// for a short time, give way to others, then sleep, so a rank that has nothing to do costs nothing.
// Functions may not throw. One Threads belongs to one thread; calls may not be nested.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace ostro::cpu {

class Threads {
 public:
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  template <class Fn>
  void parallel(Fn&& fn) {
    if (count_ == 1) return fn(0);
    run([](void* f, int thread) { (*static_cast<std::remove_reference_t<Fn>*>(f))(thread); }, &fn);
  }

  // Threads take the next item when they are free: for uneven items, and for cores that others use.
  template <class Fn>
  void for_each(std::int64_t items, Fn&& fn) {
    if (count_ == 1 || items <= 1) {
      for (std::int64_t i = 0; i < items; ++i) fn(0, i);
      return;
    }
    next_item_.store(0, std::memory_order_relaxed);
    parallel([&](int thread) {
      for (std::int64_t i; (i = next_item_.fetch_add(1, std::memory_order_relaxed)) < items;)
        fn(thread, i);
    });
  }

 private:
  using Call = void (*)(void* fn, int thread);
  // A count that one side raises and the other waits for, asleep after a while.
  struct alignas(64) Signal {
    std::atomic<std::uint32_t> value = 0;
    std::atomic<std::uint32_t> sleepers = 0;
    void raise(std::uint32_t by);
    void wait_until(std::uint32_t wanted);
  };

  void run(Call call, void* fn);
  void work(int thread);

  int count_;
  Call call_ = nullptr;  // written before started_ is raised
  void* fn_ = nullptr;
  bool stop_ = false;
  std::uint32_t calls_ = 0;
  Signal started_;  // calls begun
  Signal ended_;    // workers done, all calls together
  alignas(64) std::atomic<std::int64_t> next_item_ = 0;
  std::vector<std::thread> workers_;
};

// The processors that this process may run on.
int available_processors();

}  // namespace ostro::cpu
