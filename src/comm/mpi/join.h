// Ranks that mpirun or srun has started, on one machine or many.
//
//   if (comm::mpi_launch()) world = comm::mpi::join({.log = log});   // comm/mpi_launch.h
#pragma once

#include <memory>
#include <string>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::comm::mpi {

struct Options {
  // How long a call inside a step waits for a rank that lives but does not come. More than the
  // longest step: a pipeline's last stage waits while the first works through a long prompt.
  double stall_seconds = 300;

  // How long a rank may be silent on Ostro's own connections (comm/heartbeat) before it counts as
  // dead; 0: there are none, and only mpirun watches.
  double peer_timeout_seconds = 6;
  // Where rank 0 listens for them, as for heartbeat::addresses_of_this_host(); empty: everywhere.
  std::string peer_network = {};

  // For the line that says why a rank ends the others; may be called from another thread.
  Log log = {};
};

// MPI_Init, once a process; finish(0) is MPI_Finalize. All groups of a process belong to one thread
// at a time, which may change.
// A rank that dies, or is silent for too long, makes every wait of the others throw DeviceError,
// and rank 0 logs at once which one, where, and what is known of the cause; three seconds later a
// rank that has not ended by itself is ended. A rank that fails tells the others the same way: rank
// 0 logs "rank 1 on node7: message". finish() of a failed rank does not return: it calls MPI_Abort,
// upon which mpirun ends what is left and returns the code. Throws DeviceError if MPI does not
// start or has no support for threads, or if the ranks cannot reach rank 0.
std::unique_ptr<World> join(const Options& options = {});

}  // namespace ostro::comm::mpi
