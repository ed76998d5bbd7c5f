// The machine that this process is on.
#pragma once

#include <string>

namespace ostro {

// As gethostname(2) gives it.
std::string host_name();

}  // namespace ostro
