// Messages in flight, and the one way in which a rank waits for them. MPI's own blocking calls spin
// until they are done and never time out; this does neither.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include "comm/heartbeat/first_failure.h"
#include "comm/mpi/mpi.h"

namespace ostro::comm::mpi {

struct WaitPolicy {
  std::chrono::nanoseconds spin;           // testing again at once; then the core is yielded
  std::chrono::duration<double> stall;     // of timed waits
  const heartbeat::FirstFailure* failure;  // every wait ends with it as a DeviceError
};

// Throws DeviceError when another rank has failed.
void throw_if_failed(const WaitPolicy& policy);

// One turn of a wait that has lasted `waited`: nothing at first, then yields, then sleeps for a
// part of it. Throws DeviceError when another rank has failed.
void pause(std::chrono::steady_clock::duration waited, const WaitPolicy& policy);

// The rank in MPI_COMM_WORLD of rank `peer` of `comm`, for messages.
int world_rank(MPI_Comm comm, int peer);

// Waits for one request of a control call: for as long as the other ranks live, and after a while
// at the cost of a test every millisecond. Throws DeviceError when one has failed.
void wait_for(MPI_Request request, const char* call, const WaitPolicy& policy);

// Waits in the same way until a message of `from` is there to be received.
void wait_for_message(MPI_Comm comm, int from, int tag, const WaitPolicy& policy);

// The sends and receives of one round between this rank and its peers in `comm`. Reused from round
// to round; does not allocate after the first.
class Exchange {
 public:
  Exchange(MPI_Comm comm, const WaitPolicy& policy) : comm_(comm), policy_(policy) {}

  // `bytes` at most kLongestMessage. The memory belongs to the exchange until wait() returns.
  void send(const void* data, std::size_t bytes, int to, int tag);
  void receive(void* data, std::size_t bytes, int from, int tag);

  // Returns when all have arrived. Throws DeviceError with the failure of another rank, or naming
  // `call` and the ranks that have not come after the stall time-out; InternalError if one has sent
  // another number of bytes.
  void wait(const char* call);

 private:
  struct Message {
    int peer;
    std::size_t received_bytes;  // 0 for a send
    bool is_receive;
  };

  [[noreturn]] void throw_stalled(const char* call);
  void check_sizes(const char* call);

  MPI_Comm comm_;
  WaitPolicy policy_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Message> messages_;
};

// MPI counts in int.
inline constexpr std::size_t kLongestMessage = std::size_t{1} << 30;

}  // namespace ostro::comm::mpi
