// Times the collectives of any transport.
#pragma once

#include "comm/communicator.h"

namespace ostro::comm {

// Collective; rank 0 prints a line for each call and size, with median and 90th percentile of the
// time that it takes there.
void time_collectives(Communicator& world, const char* transport);

}  // namespace ostro::comm
