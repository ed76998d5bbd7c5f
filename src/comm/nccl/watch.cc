#include "comm/nccl/watch.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/error.h"

namespace ostro::comm::nccl {
namespace {

// A step of a GPU takes less: its end is seen at once. Who waits longer leaves the core.
constexpr double kYieldSeconds = 0.05;
constexpr std::chrono::microseconds kSleep{200};

constexpr double kLookEverySeconds = 0.01;

}  // namespace

Watch::Watch(int rank, double stall_seconds, Marks marks)
    : rank_(rank), stall_seconds_(stall_seconds), marks_(std::move(marks)) {}

void Watch::called(const Call& call) {
  const std::size_t slot = std::size_t(count_++) % kSlots;
  calls_[slot] = call;
  marks_.set(slot);
}

void Watch::turn(double seconds) {
  if (seconds < looked_seconds_) looked_seconds_ = 0;  // another wait
  if (seconds - looked_seconds_ >= kLookEverySeconds) {
    looked_seconds_ = seconds;
    try {
      for (Member* member : members_) member->throw_if_failed();
    } catch (...) {
      abort_all();
      throw;
    }
  }
  if (seconds > stall_seconds_) {
    const std::string what = unfinished();
    abort_all();
    OSTRO_THROW(DeviceError, what, " after ", stall_seconds_, " s (--comm_timeout)");
  }
  if (seconds < kYieldSeconds)
    ::sched_yield();
  else
    std::this_thread::sleep_for(kSleep);
}

std::string Watch::unfinished() const {
  for (std::int64_t i = std::max<std::int64_t>(0, count_ - std::int64_t(kSlots)); i < count_; ++i) {
    const std::size_t slot = std::size_t(i) % kSlots;
    if (marks_.passed(slot)) continue;
    const Call& call = calls_[slot];
    return text(call.name, " of ", call.bytes, " bytes of ", *call.group, " (call ", i + 1,
                " of rank ", rank_, ") has not ended");
  }
  return text("a recorded step of rank ", rank_, ", after its call ", count_, ", has not ended");
}

void Watch::abort_all() noexcept {
  for (Member* member : members_) member->abort();
}

}  // namespace ostro::comm::nccl
