// Mixtral and LLaMA: one rank's share of the forward pass.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "model/step.h"
#include "model/weights.h"

namespace ostro::model {

// The largest step that buffers are made for.
struct StepLimits {
  std::int64_t tokens = 0;
  std::int64_t requests = 0;
  std::int64_t logit_rows = 0;
  std::int64_t kv_blocks = 0;
  std::int64_t block_tokens = 0;
  std::int64_t context = 0;  // tokens of the longest sequence
};

// The groups a rank talks to. `tp` are the ranks of its stage; `pp` the ranks that hold the same
// part of other stages, in stage order.
struct RankGroups {
  comm::Communicator* tp = nullptr;
  comm::Communicator* pp = nullptr;
};

// Bytes of keys and values that one token takes on this rank.
std::int64_t kv_bytes_per_token(const ModelConfig&, const Mapping&, std::int64_t rank);

class Model {
 public:
  // Allocates everything a step needs, once (step.no_alloc). The weights' engine and the backend
  // must outlive the model.
  Model(const ModelConfig&, const Mapping&, std::int64_t rank, Weights, const StepLimits&,
        ops::Backend&, RankGroups);
  ~Model();

  // Runs one step; every rank of the grid calls it with the same step (rank.same_plan). On the last
  // stage, returns the logits [logit_rows, vocab] f32, device memory valid until the next call once
  // the backend's queue has been waited for; elsewhere an empty view.
  View forward(const Step&);

 private:
  struct Buffers;

  void prepare(const Step&);
  void embed(const Step&);
  void layer(std::size_t index, bool add_branch);
  View head(const Step&);

  ModelConfig config_;
  RankShape shape_;
  Weights weights_;
  StepLimits limits_;
  ops::Backend& backend_;
  RankGroups groups_;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace ostro::model
