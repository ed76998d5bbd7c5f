#include "comm/mpi/exchange.h"

#include <sched.h>

#include <algorithm>
#include <set>
#include <string>
#include <thread>

#include "base/error.h"
#include "comm/mpi/status.h"

namespace ostro::comm::mpi {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

void throw_if_failed(const WaitPolicy& policy) {
  if (policy.failure->is_set()) OSTRO_THROW(DeviceError, policy.failure->text());
}

// The sleep is a tenth of the wait so far, so a message is seen late by at most a tenth of the time
// that it took to come, and by no more than a millisecond; an idle rank takes under 1 % of a core.
void pause(Clock::duration waited, const WaitPolicy& policy) {
  constexpr Clock::duration kYield = 500us;  // below it, a sleep's own 50 us are more than a tenth
  constexpr Clock::duration kLongestSleep = 1ms;
  throw_if_failed(policy);
  if (waited < policy.spin) return;
  if (waited < kYield)
    ::sched_yield();
  else
    std::this_thread::sleep_for(std::min(waited / 10, kLongestSleep));
}

void wait_for(MPI_Request request, const char* call, const WaitPolicy& policy) {
  const Clock::time_point start = Clock::now();
  while (true) {
    int done = 0;
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), call);
    if (done) return;
    pause(Clock::now() - start, policy);
  }
}

void wait_for_message(MPI_Comm comm, int from, int tag, const WaitPolicy& policy) {
  const Clock::time_point start = Clock::now();
  while (true) {
    int there = 0;
    check(MPI_Iprobe(from, tag, comm, &there, MPI_STATUS_IGNORE), "wait_for_message");
    if (there) return;
    pause(Clock::now() - start, policy);
  }
}

void Exchange::send(const void* data, std::size_t bytes, int to, int tag) {
  MPI_Request request;
  check(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, tag, comm_, &request), "MPI_Isend");
  requests_.push_back(request);
  messages_.push_back({.peer = to, .received_bytes = 0, .is_receive = false});
}

void Exchange::receive(void* data, std::size_t bytes, int from, int tag) {
  MPI_Request request;
  check(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, tag, comm_, &request),
        "MPI_Irecv");
  requests_.push_back(request);
  messages_.push_back({.peer = from, .received_bytes = bytes, .is_receive = true});
}

void Exchange::wait(const char* call) {
  statuses_.resize(requests_.size());
  const Clock::time_point start = Clock::now();
  while (true) {
    int done = 0;
    const int result =
        MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data());
    if (result == MPI_ERR_IN_STATUS)
      for (const MPI_Status& status : statuses_)
        if (status.MPI_ERROR != MPI_ERR_PENDING) check(status.MPI_ERROR, call);
    check(result, call);
    if (done) break;
    const Clock::duration waited = Clock::now() - start;
    if (waited > policy_.stall) throw_stalled(call);
    pause(waited, policy_);
  }
  check_sizes(call);
  requests_.clear();
  messages_.clear();
}

void Exchange::check_sizes(const char* call) {
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    if (!messages_[i].is_receive) continue;
    int bytes = 0;
    MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes);
    OSTRO_CHECK(static_cast<std::size_t>(bytes) == messages_[i].received_bytes, "rank ",
                world_rank(comm_, messages_[i].peer), " sends ", bytes, " bytes in ", call, " for ",
                messages_[i].received_bytes, " (rank.same_plan)");
  }
}

void Exchange::throw_stalled(const char* call) {
  std::set<int> late;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    int done = 0;
    MPI_Request_get_status(requests_[i], &done, MPI_STATUS_IGNORE);
    if (!done) late.insert(world_rank(comm_, messages_[i].peer));
  }
  std::string names;
  for (const int rank : late) names += text(names.empty() ? "rank " : ", rank ", rank);
  OSTRO_THROW(DeviceError, call, " waited ", policy_.stall.count(), " s for ", names);
}

int world_rank(MPI_Comm comm, int peer) {
  MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  MPI_Comm_group(comm, &group);
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  int rank = peer;
  MPI_Group_translate_ranks(group, 1, &peer, world, &rank);
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return rank;
}

}  // namespace ostro::comm::mpi
