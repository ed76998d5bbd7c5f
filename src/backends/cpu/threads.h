// A few threads that run one function together, for work of microseconds.
//
//   Threads threads(8);
//   threads.for_each(items, [&](int thread, std::int64_t item) { ... });   // each item once
//   threads.parallel([&](int thread) { ... });              // once on each; 0 is the caller
//
// A call returns when the work is done; what it wrote is then visible. for_each waits only for
// threads that took an item: one that the system does not run just now does not hold up the
// others. Waiting threads spin for a short time, give way to others, then sleep, so a rank that has
// nothing to do costs nothing. Functions may not throw. One Threads belongs to one thread; calls
// may not be nested.
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
  void for_each(std::int64_t items, Fn&& fn) {
    if (count_ == 1 || items <= 1) {
      for (std::int64_t i = 0; i < items; ++i) fn(0, i);
      return;
    }
    next_item_.store(0, std::memory_order_relaxed);
    auto take = [&](int thread) {
      for (std::int64_t i; (i = next_item_.fetch_add(1, std::memory_order_relaxed)) < items;)
        fn(thread, i);
    };
    run([](void* f, int thread) { (*static_cast<decltype(take)*>(f))(thread); }, &take, false);
  }

  template <class Fn>
  void parallel(Fn&& fn) {
    if (count_ == 1) return fn(0);
    run([](void* f, int thread) { (*static_cast<std::remove_reference_t<Fn>*>(f))(thread); }, &fn,
        true);
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

  void run(Call call, void* fn, bool all);
  void work(int thread);

  // A region is open from the caller's start until it has nothing left to do. Workers join it by
  // counting up `region_`: the number of the region, a closed bit, how many have joined.
  static constexpr std::uint64_t kClosed = std::uint64_t{1} << 31;
  static constexpr std::uint64_t kJoined = kClosed - 1;

  int count_;
  Call call_ = nullptr;  // these two: written while no region is open, read by who joined one
  void* fn_ = nullptr;
  std::uint32_t ended_before_ = 0;  // of the caller
  std::atomic<bool> stop_ = false;
  Signal started_;  // regions opened
  Signal ended_;    // joined workers that are done, all regions together
  alignas(64) std::atomic<std::uint64_t> region_ = kClosed;
  alignas(64) std::atomic<std::int64_t> next_item_ = 0;
  std::vector<std::thread> workers_;
};

// The processors that this process may run on.
int available_processors();

}  // namespace ostro::cpu
