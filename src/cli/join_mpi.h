// The MPI transport of this build: join_mpi.cc where it is built, join_no_mpi.cc where it is not.
#pragma once

#include <memory>

#include "base/log.h"
#include "comm/world.h"

namespace ostro::cli {

// Throws Unsupported in a build without MPI.
std::unique_ptr<comm::World> join_mpi(const Log& log);

}  // namespace ostro::cli
