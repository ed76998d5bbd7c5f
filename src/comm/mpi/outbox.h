// Messages on their way to one rank, copied so that the sender goes on at once.
#pragma once

#include <deque>
#include <optional>

#include "comm/mpi/exchange.h"
#include "tensor/buffer.h"

namespace ostro::comm::mpi {

class Outbox {
 public:
  // Room for messages of `bytes` together.
  Outbox(MPI_Comm comm, int to, std::size_t bytes, const WaitPolicy& policy);
  ~Outbox();
  Outbox(const Outbox&) = delete;

  int to() const { return to_; }

  // Begins to send a copy, once those before it have left room. False, and nothing done, for one
  // that can have no room. Throws DeviceError after the stall time-out.
  bool send(const void* data, std::size_t bytes, int tag);

  // Frees the room of what has been sent, and lets MPI work on the rest.
  void forget_sent();

 private:
  struct Message {
    MPI_Request request;
    std::size_t begin, end;  // its place in the room
  };

  // Where `bytes` have room: behind the newest message, or from the start again.
  std::optional<std::size_t> place(std::size_t bytes) const;

  MPI_Comm comm_;
  int to_;
  WaitPolicy policy_;
  Buffer room_;
  std::deque<Message> messages_;  // oldest first
};

}  // namespace ostro::comm::mpi
