// Ranks that mpirun or srun has started, on one machine or many.
//
//   if (comm::mpi_launch()) world = comm::mpi::join({.log = log});   // comm/mpi_launch.h
#pragma once

#include <memory>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::comm::mpi {

struct Options {
  // How long a call inside a step waits for a rank that lives but does not come. More than the
  // longest step: a pipeline's last stage waits while the first works through a long prompt.
  double stall_seconds = 300;

  // For the line that a failing rank leaves: "rank 1 on node7: message".
  Log log = {};
};

// MPI_Init, once a process; finish(0) is MPI_Finalize. All groups of a process belong to one thread
// at a time, which may change.
// finish() of a failed rank does not return: it logs its line and calls MPI_Abort, upon which
// mpirun ends the other ranks and returns the code. Where all ranks fail alike (a bad flag), only
// the lowest of them says so. A rank that dies is noticed by mpirun, which ends the others and
// names it. Throws DeviceError if MPI does not start or has no support for threads.
std::unique_ptr<World> join(const Options& options = {});

}  // namespace ostro::comm::mpi
