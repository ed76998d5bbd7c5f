#include "comm/mpi_launch.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "base/error.h"

namespace ostro::comm {
namespace {

// The first of `names` that is set, as a number.
std::optional<int> number_in(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value == nullptr) continue;
    int number = 0;
    const char* end = value + std::strlen(value);
    const auto [stop, error] = std::from_chars(value, end, number);
    OSTRO_REQUIRE(error == std::errc{} && stop == end && number >= 0, "the environment has ", name,
                  "=\"", value, "\", which is not a number");
    return number;
  }
  return std::nullopt;
}

}  // namespace

std::optional<MpiLaunch> mpi_launch() {
  // Open MPI's own, PMI of MPICH and Slurm, PMIx. Slurm's SLURM_* alone do not count: a batch
  // script has them without being a rank.
  const std::optional<int> rank = number_in({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
  if (!rank) return std::nullopt;

  MpiLaunch launch;
  launch.rank = *rank;
  launch.ranks =
      number_in({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"})
          .value_or(1);
  launch.rank_on_this_host =
      number_in({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
          .value_or(launch.rank);
  const auto here = number_in({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"});
  launch.ranks_on_this_host = here.value_or(launch.ranks);
  launch.one_host = here == launch.ranks;
  return launch;
}

}  // namespace ostro::comm
