// A counter in shared memory that one process advances and others wait for.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace ostro::comm::local {

// All zero bytes are a valid Flag at 0. Counts modulo 2^32: comparisons hold while the two counts
// are less than 2^31 apart.
class alignas(64) Flag {
 public:
  std::uint32_t value() const { return value_.load(std::memory_order_acquire); }

  // What the publisher wrote to shared memory before publish(target) is visible once this is true.
  bool reached(std::uint32_t target) const {
    return static_cast<std::int32_t>(value() - target) >= 0;
  }

  void publish(std::uint32_t value);

  // Returns once the value is not `seen`, or after `longest`, or early for no reason.
  void sleep_while(std::uint32_t seen, std::chrono::milliseconds longest) const;

 private:
  std::atomic<std::uint32_t> value_{0};
  mutable std::atomic<std::uint32_t> sleepers_{0};
};

// Between processes an atomic must be its bare word: a lock would be each process's own, and the
// kernel's futex compares exactly 32 bits.
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint32_t>) == 4);

}  // namespace ostro::comm::local
