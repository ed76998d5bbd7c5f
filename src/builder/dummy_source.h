// The weights of a model that is only timed, drawn on the device that runs it: no engine directory,
// no checkpoint, and for 8x7B a second on a GPU.
#pragma once

#include <map>

#include "model/weights.h"

namespace ostro::builder {

// The same bits as an engine that build() makes without a checkpoint from the same configuration:
// DummyWeights of the seed, and norms of ones. For one backend.
class DummySource final : public model::WeightSource {
 public:
  explicit DummySource(const model::ModelConfig& config, std::uint64_t seed = 0)
      : dtype_(config.dtype), seed_(seed) {}

  quant::Weight load(std::span<const model::TensorSlice> stacked, ops::Backend& backend,
                     std::vector<Buffer>& owned) override;

 private:
  quant::Weight ones(const model::TensorSlice& slice, ops::Backend& backend,
                     std::vector<Buffer>& owned) const;

  View quantiles(DType dtype, ops::Backend& backend);

  DType dtype_;
  std::uint64_t seed_;
  std::map<DType, Buffer> quantiles_;  // on the device
};

}  // namespace ostro::builder
