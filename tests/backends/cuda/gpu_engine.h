// Engines of a small Mixtral on a GPU.
#pragma once

#include "backends/cuda/backend.h"
#include "builder/dummy_source.h"
#include "engine/engine.h"

namespace ostro::engine {

// A dtype, or fp8: bf16 with weights and a cache of e4m3.
struct Format {
  const char* name;
  DType dtype;
  bool fp8;
};
inline constexpr Format kBf16 = {"bf16", DType::bf16, false}, kF32 = {"f32", DType::f32, false},
                        kFp8 = {"fp8", DType::bf16, true};

inline model::EngineConfig config(const Format& format) {
  model::EngineConfig c;
  c.model.architecture = "MixtralForCausalLM";
  c.model.vocab = 1000;
  c.model.hidden = 256;
  c.model.layers = 2;
  c.model.heads = 8;
  c.model.kv_heads = 2;
  c.model.head_dim = 64;
  c.model.inter = 320;
  c.model.experts = 8;
  c.model.top_k = 2;
  c.model.context = 1024;
  c.model.dtype = format.dtype;
  if (format.fp8)
    c.model.quantization.weights = c.model.quantization.kv_cache = model::Quantization::Format::fp8;
  c.limits = {.max_batch_size = 1024,
              .max_input_len = 1024,
              .max_output_len = 1024,
              .max_beam_width = 1,
              .max_num_tokens = 2048,
              .tokens_per_block = 16};
  return c;
}

struct OnGpu {
  explicit OnGpu(const model::EngineConfig& c, const RankOptions& options)
      : weights(c.model), rank(weights, c, model::Mapping{}, *gpu, *world, options, Log{}) {}

  std::unique_ptr<ops::Backend> gpu = cuda::make_backend();
  std::unique_ptr<comm::Communicator> world = comm::make_single();
  builder::DummySource weights;
  Rank rank;
};

}  // namespace ostro::engine
