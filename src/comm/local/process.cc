#include "comm/local/process.h"

#include <sched.h>

#include "base/error.h"

namespace ostro::comm::local {
namespace {

using namespace std::chrono_literals;

// Waking a sleeper costs a system call on one side and 5-50 us on the other, and ranks that work in
// step arrive within less than that. So a wait first spins, for as long as a message takes between
// two cores that are awake, then yields its core between looks, because the scheduler of a busy
// machine may have put the awaited rank on the same one, and only then sleeps.
constexpr std::chrono::nanoseconds kSpin = 5us;
constexpr std::chrono::nanoseconds kYield = 50us;

// How soon a sleeper sees a failure, which nobody wakes it for.
constexpr std::chrono::milliseconds kSleep = 100ms;

int usable_cores() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Process::Process(SharedMemory& memory, int rank, int ranks, std::chrono::duration<double> stall)
    : memory_(memory),
      rank_(rank),
      ranks_(ranks),
      stall_(stall),
      spin_(ranks <= usable_cores() ? kSpin : 0ns) {}

std::string Process::describe(int rank) const {
  return text("rank ", rank, " (pid ", memory_.header().ranks[rank].pid.load(), ')');
}

Wait Process::wait(const Flag& flag, std::uint32_t target, int peer, bool timed) {
  if (flag.reached(target)) return Wait::reached;

  const auto start = std::chrono::steady_clock::now();
  for (auto waited = 0ns; waited < kYield; waited = std::chrono::steady_clock::now() - start) {
    if (waited < spin_)
      pause();
    else
      ::sched_yield();
    if (flag.reached(target)) return Wait::reached;
  }

  const std::atomic<bool>& peer_finished = memory_.header().ranks[peer].finished;
  while (true) {
    // Before the flag: a peer that has finished published all that it ever will.
    const bool finished = peer_finished.load(std::memory_order_acquire);
    const std::uint32_t seen = flag.value();
    if (static_cast<std::int32_t>(seen - target) >= 0) return Wait::reached;
    throw_if_failed();
    if (finished) return Wait::finished;
    if (timed && std::chrono::steady_clock::now() - start > stall_) return Wait::stalled;
    flag.sleep_while(seen, kSleep);
  }
}

void Process::throw_if_failed() {
  const Failure& failure = memory_.header().failure;
  if (!failure.is_set()) return;
  knows_failure_ = true;
  OSTRO_THROW(DeviceError, failure.text());
}

}  // namespace ostro::comm::local
