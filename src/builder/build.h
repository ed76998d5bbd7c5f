// Builds an engine directory from a checkpoint, or of dummy weights.
//
//   const checkpoint::Checkpoint source("Mixtral-8x7B-v0.1");
//   model::EngineConfig config{.model = builder::model_of(source), .mapping = {.tp = 2, .moe_tp =
//   2}}; const BuildSummary summary = builder::build(
//       {.config = config, .output_dir = "engines/mixtral"}, &source);
//
// Weights stream through: memory stays at a few MB for each worker, whatever the model's size.
// Everything that can be wrong with the input is found before the first byte is written; an error
// later (a full disk) leaves nothing behind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "model/engine_config.h"

namespace ostro::builder {

struct BuildProgress {
  std::int64_t tensors_done = 0;
  std::int64_t tensors = 0;
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes = 0;
};

struct BuildOptions {
  // config.model.dtype is the engine's; config.dummy is set here.
  model::EngineConfig config;
  std::string flags_json = "{}";  // recorded in the engine's config.json
  std::filesystem::path output_dir;
  int workers = 1;  // ranks built side by side
  std::uint64_t dummy_seed = 0;
  // Called every few MB, from one thread at a time.
  std::function<void(const BuildProgress&)> progress{};
};

struct BuildSummary {
  int files = 0;
  std::uint64_t bytes = 0;
  double seconds = 0;
  std::uint64_t peak_memory_bytes = 0;  // of the process, mapped pages included
  bool dummy = false;
};

// Dummy weights if `source` is null or holds no weights. An engine in output_dir is replaced when
// the new one is complete. Throws InvalidArgument and Unsupported for what is wrong with the input,
// DeviceError if the disk fails.
BuildSummary build(const BuildOptions& options, const checkpoint::Checkpoint* source);

}  // namespace ostro::builder
