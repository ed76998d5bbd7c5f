#include "backends/cpu/threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include "base/error.h"

namespace ostro::cpu {
namespace {

// A few microseconds of pause: a decode step has its next parallel region ready within that time.
constexpr int kSpins = 200;
// Then the processor is offered to others, which costs 0.3 us where there are none; a thread that
// nobody needed for this long sleeps.
constexpr std::chrono::microseconds kPatience{60};

void futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value) {
  static_assert(sizeof(word) == sizeof(std::uint32_t));
  ::syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

bool reached(std::uint32_t value, std::uint32_t wanted) {
  return static_cast<std::int32_t>(value - wanted) >= 0;  // counts wrap round
}

}  // namespace

void Threads::Signal::raise(std::uint32_t by) {
  value.fetch_add(by, std::memory_order_seq_cst);
  // Whoever announced itself before this load is woken; whoever comes later sees the new value.
  if (sleepers.load(std::memory_order_seq_cst) > 0) futex(value, FUTEX_WAKE, INT32_MAX);
}

void Threads::Signal::wait_until(std::uint32_t wanted) {
  for (int i = 0; i < kSpins; ++i) {
    if (reached(value.load(std::memory_order_acquire), wanted)) return;
    _mm_pause();
  }
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < until) {
    if (reached(value.load(std::memory_order_acquire), wanted)) return;
    ::sched_yield();
  }
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  for (std::uint32_t now; !reached(now = value.load(std::memory_order_seq_cst), wanted);)
    futex(value, FUTEX_WAIT, now);
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

Threads::Threads(int count) : count_(count) {
  OSTRO_REQUIRE(count >= 1 && count <= 4096, "threads is ", count, ", not 1 to 4096");
  for (int thread = 1; thread < count; ++thread)
    workers_.emplace_back([this, thread] { work(thread); });
}

Threads::~Threads() {
  stop_ = true;
  started_.raise(1);
  for (std::thread& worker : workers_) worker.join();
}

void Threads::run(Call call, void* fn, bool all) {
  call_ = call;
  fn_ = fn;
  const std::uint64_t number = (region_.load(std::memory_order_relaxed) >> 32) + 1;
  region_.store(number << 32, std::memory_order_release);
  started_.raise(1);
  call(fn, 0);
  if (all) ended_.wait_until(ended_before_ + static_cast<std::uint32_t>(count_ - 1));
  const std::uint64_t joined = region_.fetch_or(kClosed, std::memory_order_acq_rel) & kJoined;
  ended_before_ += static_cast<std::uint32_t>(joined);
  ended_.wait_until(ended_before_);
}

void Threads::work(int thread) {
  std::uint64_t last_region = 0;
  for (std::uint32_t seen = 0;;) {
    started_.wait_until(seen + 1);
    seen = started_.value.load(std::memory_order_acquire);
    if (stop_) return;
    std::uint64_t region = region_.load(std::memory_order_acquire);
    while ((region & kClosed) == 0 && region >> 32 != last_region) {
      if (!region_.compare_exchange_weak(region, region + 1, std::memory_order_acq_rel)) continue;
      last_region = region >> 32;
      call_(fn_, thread);
      ended_.raise(1);
      break;
    }
  }
}

int available_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace ostro::cpu
