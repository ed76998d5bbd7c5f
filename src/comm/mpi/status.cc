#include "comm/mpi/status.h"

#include <unistd.h>

#include "base/error.h"

namespace ostro::comm::mpi {

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char reason[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, reason, &length);
  OSTRO_THROW(DeviceError, call, ": ", reason);
}

}  // namespace ostro::comm::mpi
