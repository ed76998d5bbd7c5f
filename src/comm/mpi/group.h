// The Communicator over MPI.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/mpi/exchange.h"

namespace ostro::comm::mpi {

// The group of `comm`'s ranks. Nothing frees `comm`: freeing is collective, and a rank that ends
// because of an error cannot wait for the others to agree; MPI_Finalize does it.
std::unique_ptr<Communicator> make_group(MPI_Comm comm, const WaitPolicy& policy);

}  // namespace ostro::comm::mpi
