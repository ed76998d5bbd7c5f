// One rank at work: its weights, its KV cache, and its share of every step.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

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
  int ranks_on_device = 1;            // that share the memory of one GPU, or of a host's CPU
  bool record_steps = true;           // on a GPU: decode steps as CUDA graphs
  bool fp8_prompts = false;           // model::StepLimits::fp8_prompts
  Trace* trace = nullptr;             // gets what the rank does; may be null
  // Makes a group of this device's memory of one of host memory; empty: make_staged().
  std::function<std::unique_ptr<comm::Communicator>(std::unique_ptr<comm::Communicator>)>
      device_group = {};
};

// What rank 0 gets of a step, on the host.
struct StepResult {
  View logits;  // [host_rows, vocab] f32
  View chosen;  // [samples, ops::sample_output_words(most alternatives)] i32: ops::cut_outputs()
};

// Throws unless RankOptions::fp8_prompts can be had: InvalidArgument without int4 weights,
// Unsupported for more experts a rank than there are kernels for.
void check_fp8_prompts(const model::ModelConfig&, const model::Mapping&);

class Rank {
 public:
  // Loads the weights and allocates everything. Every rank of `world` must make its Rank at the
  // same time: they agree on the size of the KV cache. `backend` and `world` must outlive
  // it, and so must the engine that `weights` reads. `mapping` may differ from the engine's.
  Rank(model::WeightSource& weights, const model::EngineConfig&, const model::Mapping& mapping,
       ops::Backend& backend, comm::Communicator& world, const RankOptions&, const Log&);

  // Rank 0: sends the step to the other ranks and computes this rank's part of it; on a device,
  // returns while that runs. At most depth() steps may be in flight: one for each stage.
  void launch(model::Step);
  // Rank 0: ends the oldest step in flight. The result is valid until the next launch() or
  // collect().
  StepResult collect();
  int depth() const { return int(mapping_.pp); }
  int in_flight() const { return int(launched_.size()); }
  std::int64_t launched() const { return model_->steps(); }  // steps so far

  // The other ranks: runs the steps of rank 0 until end() is called there, which collects those in
  // flight.
  void follow();
  void end();

  // Rank 0: [layers, experts], row after row: how many tokens chose each expert in the steps that
  // were collected. Empty for a dense model.
  std::span<const std::int64_t> expert_tokens() const { return expert_tokens_; }

  const model::StepLimits& limits() const { return limits_; }
  std::int64_t requests() const { return limits_.requests; }
  Device device() const { return backend_.device(); }
  std::int64_t max_beam_width() const { return max_beam_width_; }
  bool leads() const { return world_.rank() == 0; }
  Trace* trace() const { return trace_; }

 private:
  void pass_on(std::vector<std::int32_t>& plan);
  void run(const model::Step&);
  View rows_on_host(const View& logits, const std::vector<std::int32_t>& rows);
  View on_host(const View& chosen);
  View host_expert_tokens() const;
  void add_expert_tokens();

  ops::Backend& backend_;
  comm::Communicator& world_;
  model::Mapping mapping_;
  std::unique_ptr<comm::Communicator> tp_;
  std::unique_ptr<comm::Communicator> pp_;
  model::StepLimits limits_;
  Buffer host_logits_, host_chosen_, host_expert_tokens_;
  std::vector<std::uint32_t>
      expert_tokens_seen_;  // modulo 2^32, when expert_tokens_ was brought up
  std::vector<std::int64_t> expert_tokens_;
  StepResult result_;  // of the step that ran last, where no other rank has it
  Trace* trace_;
  Log log_;
  bool told_of_unrecorded_ = false;
  std::deque<model::Step> launched_;  // that are not collected
  std::int64_t vocab_ = 0;
  std::int64_t layers_ = 0;
  std::int64_t experts_ = 0;
  std::int64_t max_beam_width_ = 1;  // that the engine was built for
  bool hands_over_ = false;          // the result to rank 0
  std::unique_ptr<model::Model> model_;
};

}  // namespace ostro::engine
