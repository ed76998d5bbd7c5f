// A small Mixtral of dummy weights in a directory of its own, for tests of what runs above a model.
#pragma once

#include <filesystem>
#include <memory>

#include "backends/cpu/backend.h"
#include "base/temp_dir.h"
#include "builder/build.h"
#include "engine/rank.h"

namespace ostro::testing_engine {

inline model::EngineConfig small_config() {
  model::EngineConfig config;
  config.model.architecture = "MixtralForCausalLM";
  config.model.vocab = 97;
  config.model.hidden = 64;
  config.model.layers = 2;
  config.model.heads = 4;
  config.model.kv_heads = 2;
  config.model.head_dim = 16;
  config.model.inter = 48;
  config.model.experts = 4;
  config.model.top_k = 2;
  config.model.context = 96;
  config.model.dtype = DType::f32;
  config.model.bos = 1;
  config.model.eos = {2};
  config.limits = {.max_batch_size = 32,
                   .max_input_len = 96,
                   .max_output_len = 96,
                   .max_beam_width = 1,
                   .max_num_tokens = 64,
                   .tokens_per_block = 8};
  return config;
}

class SmallEngine {
 public:
  explicit SmallEngine(const model::EngineConfig& config = small_config()) {
    builder::build({.config = config, .output_dir = dir_}, nullptr);
    reader_ = std::make_unique<checkpoint::EngineReader>(dir_);
    config_ = model::parse_engine_config(reader_->config_text(), "config.json");
  }

  std::string dir() const { return dir_.string(); }
  const checkpoint::EngineReader& reader() const { return *reader_; }
  const model::EngineConfig& config() const { return config_; }

 private:
  TempDir folder_;
  std::filesystem::path dir_ = folder_ / "engine";
  std::unique_ptr<checkpoint::EngineReader> reader_;
  model::EngineConfig config_;
};

// A rank of that engine alone in its world, or in the one given.
struct LoneRank {
  explicit LoneRank(const SmallEngine& engine, const engine::RankOptions& options = {},
                    std::unique_ptr<comm::Communicator> in = comm::make_single())
      : backend(cpu::make_backend({.threads = 1})),
        world(std::move(in)),
        weights(engine.reader()),
        rank(weights, engine.config(), model::Mapping{}, *backend, *world, options, Log{}) {}

  std::unique_ptr<ops::Backend> backend;
  std::unique_ptr<comm::Communicator> world;
  model::EngineWeights weights;
  engine::Rank rank;
};

}  // namespace ostro::testing_engine
