// The MPI transport of this build: join_mpi.cc where it is built, join_no_mpi.cc where it is not.
#pragma once

#include <memory>
#include <string>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::cli {

// --peer_timeout, --peer_network and --comm_timeout.
struct PeerFlags {
  double timeout_seconds = 6;
  std::string network;
  double stall_seconds = 300;
};

// Throws Unsupported in a build without MPI.
std::unique_ptr<comm::World> join_mpi(const PeerFlags&, const Log& log);

}  // namespace ostro::cli
