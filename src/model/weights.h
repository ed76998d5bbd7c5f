// The weights of one rank, where its backend reads them.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/engine_reader.h"
#include "model/layout.h"
#include "ops/backend.h"

namespace ostro::model {

struct LayerWeights {
  View attention_norm;   // [1, hidden]
  quant::Weight qkv;     // [(heads + 2 kv_heads) * head_dim, hidden] of this rank: q | k | v
  quant::Weight o;       // [hidden, heads * head_dim]
  View mlp_norm;         // [1, hidden]
  quant::Weight router;  // [experts, hidden]; empty if dense
  std::vector<ops::Expert> experts;  // of this rank
};

struct Weights {
  View embedding;  // first stage
  std::vector<LayerWeights> layers;
  View norm;                  // last stage
  quant::Weight lm_head;      // last stage
  std::vector<Buffer> owned;  // memory that a backend reads in place
  std::size_t bytes = 0;      // of all of them
};

// Where the matrices of a model come from.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The row-wise stack of the slices, with their scales if they are quantised, where `backend`
  // reads it. Memory that the backend reads and does not own goes to `owned`.
  virtual quant::Weight load(std::span<const TensorSlice> stacked, ops::Backend& backend,
                             std::vector<Buffer>& owned) = 0;
};

// An engine of any mapping. What lies in one piece in its map is used there; the rest is assembled.
// `engine` must outlive the backend.
class EngineWeights final : public WeightSource {
 public:
  explicit EngineWeights(const checkpoint::EngineReader& engine) : engine_(engine) {}
  quant::Weight load(std::span<const TensorSlice> stacked, ops::Backend& backend,
                     std::vector<Buffer>& owned) override;

 private:
  const checkpoint::EngineReader& engine_;
};

// This rank's part of a model.
Weights load_weights(WeightSource&, const ModelConfig&, const Mapping&, std::int64_t rank,
                     ops::Backend&);

}  // namespace ostro::model
