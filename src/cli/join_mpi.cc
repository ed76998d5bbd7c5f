#include "cli/join_mpi.h"

#include "comm/mpi/join.h"

namespace ostro::cli {

std::unique_ptr<comm::World> join_mpi(const PeerFlags& flags, const Log& log) {
  return comm::mpi::join({.stall_seconds = flags.stall_seconds,
                          .peer_timeout_seconds = flags.timeout_seconds,
                          .peer_network = flags.network,
                          .log = log});
}

}  // namespace ostro::cli
