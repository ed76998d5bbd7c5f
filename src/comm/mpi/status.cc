#include "comm/mpi/status.h"

#include "base/error.h"

namespace ostro::comm::mpi {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char reason[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, reason, &length);
  OSTRO_THROW(DeviceError, call, ": ", reason);
}

}  // namespace ostro::comm::mpi
