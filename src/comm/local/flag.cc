#include "comm/local/flag.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace ostro::comm::local {

// publish() writes the value and then reads sleepers_; sleep_while() raises sleepers_ and then (in
// the kernel, behind its own full barrier) reads the value. All four are sequentially consistent,
// so at least one side sees the other: either the publisher wakes the sleeper or the kernel finds
// the new value and does not sleep. A publisher without sleepers makes no system call.
//
// The futex is not FUTEX_PRIVATE: the waiters are other processes. A sleeper that is killed leaves
// sleepers_ one too high, which costs a system call a publish while the ranks end.

void Flag::publish(std::uint32_t value) {
  value_.store(value, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0)
    ::syscall(SYS_futex, &value_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Flag::sleep_while(std::uint32_t seen, std::chrono::milliseconds longest) const {
  const timespec timeout{.tv_sec = static_cast<std::time_t>(longest.count() / 1000),
                         .tv_nsec = static_cast<long>(longest.count() % 1000 * 1'000'000)};
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  ::syscall(SYS_futex, &value_, FUTEX_WAIT, seen, &timeout, nullptr, 0);
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace ostro::comm::local
