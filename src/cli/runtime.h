// An engine on its ranks: what run, eval, bench and serve have in common.
#pragma once

#include <functional>

#include "checkpoint/engine_reader.h"
#include "cli/join_mpi.h"
#include "cli/quantisation_flags.h"
#include "cli/shape_flags.h"
#include "engine/rank.h"
#include "ostro/executor.h"

namespace ostro::cli {

// The flags of every command that runs an engine.
struct RuntimeFlags {
  bool dummy_weights = false;
  ShapeFlags shape;            // with dummy_weights
  std::string dtype = "auto";  // with dummy_weights
  std::string engine_dir = "engine_outputs";
  std::string device = "auto";
  int tp_size = 0;
  int pp_size = 0;
  int moe_ep_size = 0;
  int threads = 0;
  std::int64_t max_batch_size = 0;
  std::int64_t max_num_tokens = 0;
  double kv_fraction = 0;
  std::int64_t kv_tokens = 0;
  bool cuda_graphs = true;
  bool share_gpus = false;
  QuantisationFlags quantisation;  // with dummy_weights
  std::string comm = "auto";
  bool emulate_fp8_activations = false;
  bool fp8_prompts = false;
  std::string trace;
  PeerFlags peers;
  LogFlag log;

  void add(CLI::App& app);
};

// A running engine as rank 0 sees it.
struct Session {
  const model::EngineConfig& config;
  engine::Rank& rank;
  ops::Backend& backend;
  const Log& log;
};

// What the flags will run: the engine's configuration, or that of dummy weights.
model::EngineConfig config_of(const RuntimeFlags&);

// The configuration of an engine directory.
model::EngineConfig read_config(const checkpoint::EngineReader&);

// The engine's mapping, or the one that --tp_size, --pp_size and --moe_ep_size ask for: any engine
// loads on any.
model::Mapping chosen_mapping(const RuntimeFlags&, const model::EngineConfig&);

// guaranteed_no_evict or max_utilization, of --capacity_policy.
CapacityPolicy parse_capacity_policy(const std::string&);

// Many connections take many file descriptors: as many as the system allows.
void raise_descriptor_limit();

// True in the process that prints: rank 0, or the only one.
bool prints();

// Starts the ranks that the engine asks for (those of mpirun, or its own), loads the engine on
// each, and calls `lead` on rank 0 while the others follow. `max_logit_rows` as in
// engine::RankOptions. Returns the process's exit code; a failure of any rank is printed once.
int run_on_ranks(const RuntimeFlags&, std::int64_t max_logit_rows,
                 const std::function<void(Session&)>& lead);

// Prints "ostro: error: ..." for the exception at hand and returns its exit code: 2 the input is
// wrong, 3 not in this build, 4 the machine failed, 5 a bug.
struct Failure {
  int code;
  std::string message;
};
Failure failure_at_hand();

// The command line of this process, for messages that show a better one.
void remember_command_line(int argc, char** argv);

}  // namespace ostro::cli
