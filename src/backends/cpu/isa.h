#pragma once

#include <string>
#include <vector>

#include "backends/cpu/kernels/kernels.h"

namespace ostro::cpu {

// The instruction sets that this processor and system have, the best first. Empty without AVX2.
std::vector<const Kernels*> available_kernels();

// "auto" is the best one. Throws Unsupported, naming what there is, for one that is not available.
const Kernels& choose_kernels(const std::string& isa);

}  // namespace ostro::cpu
