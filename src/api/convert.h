// Between the public types and the engine's.
#pragma once

#include "engine/engine.h"
#include "ostro/executor.h"

namespace ostro::api {

engine::Request to_engine(Request);
engine::EngineOptions to_engine(const ExecutorConfig&);
engine::RankOptions rank_options(const ExecutorConfig&, std::int64_t ranks_on_host);

FinishReason to_public(engine::Finish);
ModelInfo model_info(const model::ModelConfig&, bool dummy);

// Adds what the event tells, but for its end, to a response; `request` says what is wanted.
void add(engine::Event&&, const engine::Request& request, Response&);

}  // namespace ostro::api
