#include "cli/join_mpi.h"

#include "comm/mpi/join.h"

namespace ostro::cli {

std::unique_ptr<comm::World> join_mpi(const Log& log) { return comm::mpi::join({.log = log}); }

}  // namespace ostro::cli
