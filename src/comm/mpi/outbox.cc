#include "comm/mpi/outbox.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/error.h"
#include "comm/mpi/status.h"

namespace ostro::comm::mpi {

using Clock = std::chrono::steady_clock;

Outbox::Outbox(MPI_Comm comm, int to, std::size_t bytes, const WaitPolicy& policy)
    : comm_(comm),
      to_(to),
      policy_(policy),
      room_(allocate_host(std::max<std::size_t>(bytes, 1))) {}

Outbox::~Outbox() {
  int done = 0;
  while (!messages_.empty() &&
         MPI_Test(&messages_.front().request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done)
    messages_.pop_front();
  // MPI may read what has not been received until the process ends, as it will after an error.
  if (!messages_.empty()) new (std::nothrow) Buffer(std::move(room_));
}

bool Outbox::send(const void* data, std::size_t bytes, int tag) {
  if (bytes > std::min(room_.bytes(), kLongestMessage)) return false;
  const Clock::time_point start = Clock::now();
  const std::size_t taken = std::max<std::size_t>(bytes, 1);  // so that places differ
  forget_sent();
  std::optional<std::size_t> at = place(taken);
  while (!at) {
    const Clock::duration waited = Clock::now() - start;
    if (waited > policy_.stall)
      OSTRO_THROW(DeviceError, "send waited ", policy_.stall.count(), " s for ", messages_.size(),
                  " messages to be received by rank ", world_rank(comm_, to_));
    pause(waited, policy_);
    forget_sent();
    at = place(taken);
  }
  std::byte* copy = static_cast<std::byte*>(room_.data()) + *at;
  if (bytes > 0) std::memcpy(copy, data, bytes);
  MPI_Request request;
  check(MPI_Isend(copy, static_cast<int>(bytes), MPI_BYTE, to_, tag, comm_, &request), "MPI_Isend");
  messages_.push_back({request, *at, *at + taken});
  return true;
}

void Outbox::forget_sent() {
  while (!messages_.empty()) {
    int done = 0;
    check(MPI_Test(&messages_.front().request, &done, MPI_STATUS_IGNORE), "send");
    if (!done) return;
    messages_.pop_front();
  }
}

std::optional<std::size_t> Outbox::place(std::size_t bytes) const {
  if (messages_.empty()) return 0;
  const std::size_t oldest = messages_.front().begin;
  const std::size_t end = messages_.back().end;
  if (messages_.back().begin >= oldest) {  // free: [end, all) and [0, oldest)
    if (end + bytes <= room_.bytes()) return end;
    if (bytes <= oldest) return 0;
  } else if (end + bytes <= oldest) {
    return end;
  }
  return std::nullopt;
}

}  // namespace ostro::comm::mpi
