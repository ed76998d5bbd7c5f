#include "cli/join_mpi.h"

namespace ostro::cli {

std::unique_ptr<comm::World> join_mpi(const PeerFlags&, const Log&) {
  OSTRO_THROW(Unsupported,
              "this build has no MPI transport; without mpirun, ostro starts the ranks by itself");
}

}  // namespace ostro::cli
