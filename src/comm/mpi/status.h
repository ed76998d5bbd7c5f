// MPI's return codes as DeviceError.
#pragma once

#include "comm/mpi/mpi.h"

namespace ostro::comm::mpi {

// Throws DeviceError with `call` and MPI's own text unless `status` is MPI_SUCCESS. Communicators
// need MPI_ERRORS_RETURN for it to get that far.
void check(int status, const char* call);

}  // namespace ostro::comm::mpi
