// A GPU behind the host's memory: a backend whose ops copy their operands to the device, run there
// and copy the outputs back, so that one test serves both.
#pragma once

#include <memory>

#include "ops/backend.h"

namespace ostro::ops::testing {

// How the rows of a matrix lie on the device: from 16 bytes to 16 bytes, as the fast kernels want
// them, or from nowhere in particular. Either way a gap follows each row and a guard surrounds the
// whole; a kernel that writes there makes the op throw InternalError.
enum class Rows { aligned, odd };

std::unique_ptr<Backend> make_mirror(std::shared_ptr<Backend> gpu, Rows rows);

}  // namespace ostro::ops::testing
