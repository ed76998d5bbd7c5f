// Collectives of device memory over a transport that takes host memory.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "ops/backend.h"

namespace ostro::engine {

// Views of the backend's device go through host memory, both ways, behind the backend's queue; host
// views go to `host` as they are. The backend must outlive it. So ranks run on GPUs, on one GPU
// together too, wherever they can talk at all; what it costs is two copies a collective.
std::unique_ptr<comm::Communicator> make_staged(std::unique_ptr<comm::Communicator> host,
                                                ops::Backend& backend);

}  // namespace ostro::engine
