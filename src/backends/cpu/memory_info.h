#pragma once

#include <cstddef>

namespace ostro::cpu {

// What this process could still allocate: MemAvailable of the system, less if its control group
// has a limit. 0 if the system does not say.
std::size_t available_memory_bytes();

}  // namespace ostro::cpu
