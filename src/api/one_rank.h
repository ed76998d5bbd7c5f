// An engine on this process alone.
#pragma once

#include "api/core.h"

namespace ostro::api {

// Loads the engine, whatever number of ranks it was built for. Throws as OSTRO_REQUIRE does.
std::unique_ptr<Executor::Core> load_one_rank(const ExecutorConfig&);

}  // namespace ostro::api
