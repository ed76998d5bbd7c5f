// Small checkpoints of tests, in float32 with seeded values.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "builder/build.h"
#include "builder/sources.h"
#include "checkpoint/files.h"

namespace ostro::testing {

inline const fs::path kGolden = OSTRO_SOURCE_DIR "/tests/golden";
inline const fs::path kTiny = OSTRO_SOURCE_DIR "/models/tiny-mixtral";

inline Tensor random_tensor(const std::string& name, const std::vector<std::int64_t>& shape) {
  std::mt19937 generator(unsigned(std::hash<std::string>{}(name)));
  std::uniform_real_distribution<float> uniform(-1, 1);
  Tensor t{.name = name, .shape = shape, .values = {}};
  t.values.resize(std::size_t(*checkpoint::element_count(shape)));
  for (float& v : t.values) v = uniform(generator);
  return t;
}

// A dense LLaMA in the Hugging Face form, to be changed by a test before it is written.
struct SmallLlama {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"vocab_size", 10},
                           {"hidden_size", 8},
                           {"intermediate_size", 6},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 2},
                           {"hidden_act", "silu"},
                           {"max_position_embeddings", 32},
                           {"rms_norm_eps", 1e-5},
                           {"torch_dtype", "float32"},
                           {"tie_word_embeddings", false}};
  std::map<std::string, Tensor> tensors;

  SmallLlama() {
    const std::string layer = "model.layers.0.";
    add("model.embed_tokens.weight", {10, 8});
    add(layer + "input_layernorm.weight", {8});
    for (const char* name : {"q", "k", "v", "o"})
      add(layer + "self_attn." + name + "_proj.weight", {8, 8});
    add(layer + "post_attention_layernorm.weight", {8});
    add(layer + "mlp.gate_proj.weight", {6, 8});
    add(layer + "mlp.up_proj.weight", {6, 8});
    add(layer + "mlp.down_proj.weight", {8, 6});
    add("model.norm.weight", {8});
    add("lm_head.weight", {10, 8});
  }
  void add(const std::string& name, const std::vector<std::int64_t>& shape) {
    tensors[name] = random_tensor(name, shape);
  }
  void write(const fs::path& dir) const {
    fs::create_directories(dir);
    std::vector<Tensor> list;
    for (const auto& [name, tensor] : tensors) list.push_back(tensor);
    write_bytes(dir / "model.safetensors", safetensors(list));
    write_bytes(dir / "config.json", config.dump());
  }
};

// The options of a build with the checkpoint's own settings.
inline builder::BuildOptions options_for(const model::ModelConfig& model, const fs::path& output,
                                         const model::Mapping& mapping = {}) {
  builder::BuildOptions o;
  o.config.model = model;
  o.config.mapping = mapping;
  o.config.limits.max_input_len = o.config.limits.max_output_len = model.context;
  o.output_dir = output;
  return o;
}

inline builder::BuildSummary build_engine(const fs::path& checkpoint_dir, const fs::path& output,
                                          const model::Mapping& mapping = {}) {
  const checkpoint::Checkpoint source(checkpoint_dir);
  return builder::build(options_for(builder::model_of(source), output, mapping), &source);
}

}  // namespace ostro::testing
