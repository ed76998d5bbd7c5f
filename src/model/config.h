// What a checkpoint's configuration says about the forward pass, and nothing else.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace ostro::model {

// How rotary frequencies are stretched beyond the context of the first training.
//   linear   every angle divided by factor (Chen et al. 2023, arXiv:2306.15595)
//   dynamic  a larger base for a sequence longer than original_context ("NTK-aware")
//   llama3   low frequencies divided by factor, high ones kept (Llama 3.1)
struct RopeScaling {
  enum class Type { none, linear, dynamic, llama3 };
  Type type = Type::none;
  double factor = 1;
  double low_freq_factor = 1;         // llama3
  double high_freq_factor = 4;        // llama3
  std::int64_t original_context = 0;  // dynamic, llama3: tokens
};

// What an engine stores in fewer bits than its dtype.
struct Quantization {
  enum class Format { none, fp8, int8, int4 };
  Format weights = Format::none;   // of q, k, v, o and the experts: a format of quant/weight.h
  Format kv_cache = Format::none;  // none or fp8: f8e4m3, ops/attention.h
  bool operator==(const Quantization&) const = default;
};

// The largest dimension or vocabulary that a configuration may name.
inline constexpr std::int64_t kLargestDimension = std::int64_t{1} << 40;

struct ModelConfig {
  std::string architecture;  // "MixtralForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"
  std::int64_t vocab = 0;
  std::int64_t hidden = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;  // even
  std::int64_t inter = 0;     // of one expert
  std::int64_t experts = 0;   // 0: dense, one feed-forward layer and no router
  std::int64_t top_k = 0;     // experts a token; 0 if dense
  std::int64_t context = 0;   // the longest sequence, tokens
  std::int64_t window = 0;    // sliding window, tokens; 0: none
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;
  bool renormalize = true;    // expert weights of a token sum to 1
  DType dtype = DType::bf16;  // of the checkpoint, or of the engine
  std::int64_t bos = -1;      // -1: none
  std::vector<std::int64_t> eos;
  Quantization quantization;  // of the engine

  DType kv_dtype() const {
    return quantization.kv_cache == Quantization::Format::fp8 ? DType::f8e4m3 : dtype;
  }
  std::int64_t feed_forwards() const { return experts > 0 ? experts : 1; }
};

// Throws InvalidArgument naming the field and the rule, and the file `source` if there is one:
// sizes > 0, heads a multiple of kv_heads, head_dim even, 1 <= top_k <= experts ...
void check(const ModelConfig&, std::string_view source = {});

// A Hugging Face config.json. A setting that the forward pass does not honour (another activation,
// biases, a quantised checkpoint, an unknown key that is not empty) is refused by name:
// Unsupported.
ModelConfig from_hugging_face(std::string_view text, std::string_view source);

// Meta's and Mistral's params.json beside consolidated weights; `vocab_rows` and `dtype` are those
// of the embedding tensor.
ModelConfig from_params(std::string_view text, std::string_view source, std::int64_t vocab_rows,
                        std::int64_t inter, DType dtype);

// The "model" section of an engine's config.json, both ways.
nlohmann::json to_json(const ModelConfig&);
ModelConfig from_engine(const nlohmann::json& section, std::string_view source);

std::string_view name(Quantization::Format);  // "none", "fp8", "int8", "int4"

// An engine's "quantization", both ways: {"weights": "fp8", "kv_cache": "none"}. Throws Unsupported
// for a format that this build does not have.
nlohmann::json to_json(const Quantization&);
Quantization quantization_from_engine(const nlohmann::json& section, std::string_view source);

// "mixtral-8x7b", "mixtral-8x22b" or "llama-7b", for engines of dummy weights.
ModelConfig preset(std::string_view name);

// "float32", "float16", "bfloat16" and short forms; an error names the file `source`, if any.
DType parse_dtype(std::string_view name, std::string_view source = {});
std::string_view dtype_flag(DType);  // the long form

}  // namespace ostro::model
