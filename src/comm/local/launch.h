// Ranks of one machine that Ostro starts by itself, without MPI.
//
//   std::unique_ptr<comm::World> world = comm::local::start_ranks(4, {.log = log});  // 4 return
//   ... world->communicator() ...
//   const comm::Outcome end = world->finish(code, message);
//
// A rank that is killed, fails or stops half-way makes every collective of the others throw
// DeviceError with its story within a second; the whole program has ended within five.
#pragma once

#include <cstddef>
#include <memory>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::comm::local {

struct Options {
  // How long a call inside a step waits for a rank that lives but does not come. More than the
  // longest step: a pipeline's last stage waits while the first works through a long prompt.
  double stall_seconds = 300;

  // How many times a rank may call split(), sub-groups of sub-groups included.
  int splits = 8;

  // Collectives move a rank's data in slots of this size, messages through rings of this size (a
  // power of two). Touched only as far as used.
  std::size_t slot_bytes = std::size_t{1} << 20;
  std::size_t ring_bytes = std::size_t{1} << 20;

  // What each rank may take for buffer_sends(), touched only as far as used.
  std::size_t buffer_bytes = std::size_t{512} << 20;

  // For the one line that is written when rank 0 does not end by itself after a failure; called
  // from a thread of its own.
  Log log = {};
};

// Makes this process rank 0 and forks the others: it returns once in each of the `ranks` processes,
// which go on from here as copies and tell each other apart by communicator().rank(). Each returns
// finish()'s code from main.
// To be called before the process has a second thread. The copies read an empty stdin and ignore
// SIGINT, SIGTERM and SIGHUP, which are for rank 0; they die with it, however it dies.
// If rank 0 has not called finish() three seconds after a failure, it logs the failure, kills the
// others and exits: the main thread hangs somewhere that no exception reaches.
// One rank is make_single_world(). Throws InvalidArgument for fewer than 1 or more than 64 ranks,
// DeviceError if the machine has no memory or process left.
std::unique_ptr<World> start_ranks(int ranks, const Options& options = {});

}  // namespace ostro::comm::local
