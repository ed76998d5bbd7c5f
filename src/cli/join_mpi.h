// The MPI transport of this build: join_mpi.cc where it is built, join_no_mpi.cc where it is not.
#pragma once

#include <memory>
#include <string>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::cli {

// --peer_timeout and --peer_network.
struct PeerFlags {
  double timeout_seconds = 6;
  std::string network;
};

// Throws Unsupported in a build without MPI.
std::unique_ptr<comm::World> join_mpi(const PeerFlags&, const Log& log);

}  // namespace ostro::cli
