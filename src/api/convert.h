// Between the public types and the engine's.
#pragma once

#include "engine/engine.h"
#include "guide/guide.h"
#include "ostro/executor.h"

namespace ostro::api {

engine::Request to_engine(Request);  // but for its guide
guide::Guide to_engine(const Guide&);
guide::Vocabulary to_engine(const Vocabulary&);
engine::EngineOptions to_engine(const ExecutorConfig&);
engine::RankOptions rank_options(const ExecutorConfig&, std::int64_t ranks_on_device);

FinishReason to_public(engine::Finish);
ModelInfo model_info(const model::ModelConfig&, bool dummy);

// What of a token its client asked for.
struct Wanted {
  bool log_probs = false;
  bool alternatives = false;
  bool streaming = true;
  bool beams = false;
};

// Adds what the event tells, but for its end, to a response.
void add(engine::Event&&, const Wanted&, Response&);

}  // namespace ostro::api
