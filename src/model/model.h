// Mixtral and LLaMA: one rank's share of the forward pass.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "comm/communicator.h"
#include "model/step_arrays.h"
#include "model/weights.h"

namespace ostro {
class Trace;
}

namespace ostro::model {

// From so many tokens on a step is one of prompts (StepLimits::fp8_prompts).
inline constexpr std::int64_t kFp8PromptTokens = 257;

// The largest step that buffers are made for.
struct StepLimits {
  std::int64_t tokens = 0;
  std::int64_t requests = 0;
  std::int64_t logit_rows = 0;
  std::int64_t kv_blocks = 0;
  std::int64_t block_tokens = 0;
  std::int64_t context = 0;  // tokens of the longest sequence
  bool record_steps = true;  // decode steps, where the backend can (ops::Backend::record)
  // Steps of kFp8PromptTokens and more round the activations of int4 weights to e4m3.
  bool fp8_prompts = false;
  // Device memory that recorded steps may take: none is recorded that might not fit.
  std::size_t most_recorded_bytes = std::numeric_limits<std::size_t>::max();
};

// The groups a rank talks to. `tp` are the ranks of its stage; `pp` the ranks that hold the same
// part of other stages, in stage order.
struct RankGroups {
  comm::Communicator* tp = nullptr;
  comm::Communicator* pp = nullptr;
  Trace* trace = nullptr;  // null: none is written
};

// What a step gives on the last stage, device memory valid until the next one, once the backend's
// queue has been waited for; elsewhere empty.
struct StepOutput {
  View logits;  // [logit_rows, vocab] f32
  View chosen;  // [samples, ops::sample_output_words(..)] i32, on the first rank of the stage
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

  // What a Model of these allocates beside its weights and keys and values.
  static std::size_t step_bytes(const ModelConfig&, const Mapping&, std::int64_t rank,
                                const StepLimits&);

  // Runs one step; every rank of the grid calls it with the same step (rank.same_plan). A step in
  // which every request continues by one token is padded to one of few shapes and, from the second
  // of a shape on, replayed as it was recorded, where the backend can: with the same results.
  StepOutput forward(const Step&);
  std::int64_t steps() const { return steps_; }  // begun so far
  // Device memory that recorded steps have taken, and whether one was not recorded for want of it.
  std::size_t recorded_bytes() const { return std::size_t(std::max<std::int64_t>(recorded_, 0)); }
  bool leaves_unrecorded() const { return leaves_unrecorded_; }

  // [layers, experts] i32: the tokens that chose each expert in all steps so far, modulo 2^32, of
  // the layers of this stage and of those before it. Device memory of forward(); empty for a dense
  // model.
  View expert_tokens() const;

 private:
  struct Buffers;

  void prepare(const Step&, const StepShape&, std::int64_t alternatives);
  void copy_blocks(const Step&);
  void replay(const StepShape&);
  template <class F>
  void count_recorded(F&& f);
  void compute();
  void embed();
  void receive_from_previous();
  void send_to_next();
  void layer(std::size_t index);
  void feed_forward(std::size_t index);
  // The norm after layer `index`'s feed-forward: the next layer's, that of the head, or none.
  struct Norm {
    View weight, h;
    bool for_products = false;  // with layer weights, which read h
    bool routed = false;        // which a router reads too
  };
  Norm norm_after(std::size_t index) const;
  void add_branch(const Norm&);
  ops::AddRmsNorm norm_of_branch(const Norm&) const;
  ops::Activations norm_activations() const;
  ops::Activations activations(std::int64_t tokens) const;
  void head();

  ModelConfig config_;
  RankShape shape_;
  Weights weights_;
  StepLimits limits_;
  ops::Backend& backend_;
  RankGroups groups_;
  std::int64_t blocks_each_ = 0;   // of the longest sequence
  std::int64_t dynamic_half_ = 0;  // head_dim / 2 with dynamic rotary scaling
  bool records_ = false;
  bool leaves_unrecorded_ = false;
  std::int64_t recorded_ = 0, most_recorded_at_once_ = 0;  // bytes
  std::unique_ptr<Buffers> buffers_;
  std::int64_t steps_ = 0;
};

}  // namespace ostro::model
