// The ranks' own connections, which they make with the help of MPI.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/heartbeat/heartbeat.h"
#include "comm/mpi/join.h"

namespace ostro::comm::mpi {

// Collective over the group of all ranks. Throws DeviceError on a rank that cannot reach rank 0,
// and later on rank 0, naming those that have not come; InvalidArgument if rank 0's host has no
// such network.
std::unique_ptr<heartbeat::Heartbeat> start_heartbeat(Communicator& all, int ranks_on_this_host,
                                                      const Options&,
                                                      heartbeat::FirstFailure& failure);

}  // namespace ostro::comm::mpi
