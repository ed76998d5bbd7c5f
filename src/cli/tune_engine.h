// ostro build --tune: measures the tactics of an engine's products on this machine's GPU.
#pragma once

#include <filesystem>
#include <memory>

#include "base/log.h"
#include "model/engine_config.h"
#include "ops/backend.h"

namespace ostro::cli {

// The GPU to measure on. Throws Unsupported, saying that --tune needs one, where there is none.
std::unique_ptr<ops::Backend> gpu_to_tune();

// Writes tactics.json to the engine and prints what is faster than the plan. `quiet` shows no
// progress.
void tune_engine(const std::filesystem::path& engine_dir, const model::EngineConfig&,
                 ops::Backend& gpu, const Log&, bool quiet);

}  // namespace ostro::cli
