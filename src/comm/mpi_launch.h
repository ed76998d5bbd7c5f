// What an MPI launcher says in the environment, read without MPI: MPI_Init costs a quarter of a
// second, which a process that was started by hand should not pay.
#pragma once

#include <optional>

namespace ostro::comm {

struct MpiLaunch {
  int rank = 0;
  int ranks = 1;
  int rank_on_this_host = 0;
  int ranks_on_this_host = 1;
  bool one_host = false;  // the launcher says that all ranks are on this host
};

// Empty unless mpirun (Open MPI, MPICH) or srun --mpi=pmix|pmi2 started this process. What the
// launcher does not tell (srun: the ranks of this host, at times) is its value for one host.
// Throws InvalidArgument, naming the variable, if one holds something else than a number.
std::optional<MpiLaunch> mpi_launch();

}  // namespace ostro::comm
