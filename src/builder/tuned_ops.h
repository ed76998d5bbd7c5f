// The operations of one rank that have products to tune, with dummy weights.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "builder/dummy_source.h"
#include "model/engine_config.h"

namespace ostro::builder {

// What differs from run to run of a TunedOp comes round after so many: the routing of experts; the
// copy of the weights after at most kMostCopies.
inline constexpr std::size_t kRoutings = 8;
inline constexpr std::size_t kMostCopies = 128;

// An operation of a step of some tokens, and what comes right before it. Of its weights there are
// so many copies that they do not stay in a device's L2 from run to run.
struct TunedOp {
  std::vector<Buffer> memory{};
  std::int64_t tokens = 0, cols = 0;                        // of y
  DType dtype = DType::f32;                                 // of y
  std::function<void(std::size_t i, const View& y)> run{};  // enqueues it, the i-th time

  std::size_t bytes() const { return std::size_t(tokens * cols) * size_of(dtype); }
  View output(const Buffer& y) const { return y.view(dtype, tokens, cols); }
};

class TunedOps {
 public:
  // `config` and `backend` must outlive it, and it its operations, whose weights it keeps.
  TunedOps(const model::EngineConfig& config, std::int64_t rank, ops::Backend& backend);

  // A product, and how to make the operation that it is part of.
  struct Part {
    std::string name;
    ops::Product product;
    std::int64_t most_tokens;  // that a step usually has
    TunedOp (TunedOps::*make)(std::int64_t tokens);
  };
  std::vector<Part> parts() const;

 private:
  using Slices = std::vector<model::TensorSlice>;

  TunedOp qkv(std::int64_t tokens);
  TunedOp o(std::int64_t tokens);
  TunedOp mlp(std::int64_t tokens);
  TunedOp lm_head(std::int64_t tokens);
  TunedOp linear(const std::string& name, const Slices&, std::int64_t tokens, DType out,
                 bool after_norm);

  struct Copies {
    std::vector<Buffer> memory;
    std::vector<quant::Weight> dense;
    std::vector<std::vector<ops::Expert>> experts;
  };
  const Copies& dense_copies(const std::string& name, const Slices& stacked);
  const Copies& expert_copies();

  std::string expert(std::int64_t index, const char* part) const;
  // Of this rank's first layer.
  Slices layer(const std::vector<std::string>& names) const;
  ops::Product product(const Slices& stacked, bool swiglu) const;
  ops::Activations activations(DType weights) const;

  quant::Weight load(const Slices& stacked, std::vector<Buffer>& owner);
  View drawn(DType, std::int64_t rows, std::int64_t cols, TunedOp& owner);
  View routing(std::int64_t tokens, std::uint32_t seed, TunedOp& owner);
  // The norm before products with layer weights, which writes their x.
  ops::AddRmsNorm norm(std::int64_t tokens, DType weights, TunedOp& owner);

  const model::ModelConfig& model_;
  model::RankShape shape_;
  bool norm_rounds_;  // what follows it: as Model::norm_activations()
  ops::Backend& backend_;
  DummySource source_;
  std::map<std::string, model::TensorSlice> slices_;
  std::map<std::string, Copies> copies_;
};

}  // namespace ostro::builder
