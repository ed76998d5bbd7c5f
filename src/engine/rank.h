// One rank at work: its weights, its KV cache, and its share of every step.
#pragma once

#include <memory>
#include <optional>

#include "base/log.h"
#include "comm/communicator.h"
#include "model/engine_config.h"
#include "model/model.h"

namespace ostro::engine {

// What `run` and `serve` may set; 0 or empty: the engine's own limit.
struct RankOptions {
  std::int64_t max_batch_size = 0;
  std::int64_t max_num_tokens = 0;
  std::int64_t max_logit_rows = 0;    // 0: as many as requests
  std::int64_t kv_cache_tokens = 0;   // 0: as much as fits
  double kv_cache_free_fraction = 0;  // of the device's free memory; 0: 0.5 on a CPU, else 0.9
  int ranks_on_host = 1;              // that share the memory of a CPU
};

class Rank {
 public:
  // Loads the weights and allocates everything. Every rank of `world` must make its Rank at the
  // same time: they agree on the size of the KV cache. `engine`, `backend` and `world` must outlive
  // it. `mapping` may differ from the engine's.
  Rank(const checkpoint::EngineReader& engine, const model::EngineConfig&,
       const model::Mapping& mapping, ops::Backend& backend, comm::Communicator& world,
       const RankOptions&, const Log&);

  // Rank 0: broadcasts the step, runs it, and returns the logits of the wanted rows on the host,
  // [logit_rows, vocab] f32, valid until the next call.
  View lead(const model::Step&);
  // The other ranks: runs the steps of rank 0 until end() is called there.
  void follow();
  void end();

  const model::StepLimits& limits() const { return limits_; }
  std::int64_t requests() const { return limits_.requests; }
  bool leads() const { return world_.rank() == 0; }

 private:
  View run(const model::Step&);

  ops::Backend& backend_;
  comm::Communicator& world_;
  model::Mapping mapping_;
  std::unique_ptr<comm::Communicator> tp_;
  std::unique_ptr<comm::Communicator> pp_;
  model::StepLimits limits_;
  Buffer host_logits_;
  std::int64_t vocab_ = 0;
  std::unique_ptr<model::Model> model_;
};

}  // namespace ostro::engine
