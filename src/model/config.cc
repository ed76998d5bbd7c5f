#include "model/config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "model/rope.h"

namespace ostro::model {
namespace {

using nlohmann::json;

std::string_view name_of(RopeScaling::Type type) {
  switch (type) {
    case RopeScaling::Type::none:
      return "default";
    case RopeScaling::Type::linear:
      return "linear";
    case RopeScaling::Type::dynamic:
      return "dynamic";
    case RopeScaling::Type::llama3:
      return "llama3";
  }
  return "";
}

RopeScaling::Type scaling_type(std::string_view type, std::string_view source) {
  for (auto t : {RopeScaling::Type::none, RopeScaling::Type::linear, RopeScaling::Type::dynamic,
                 RopeScaling::Type::llama3})
    if (name_of(t) == type) return t;
  OSTRO_THROW(Unsupported, source, ": rope scaling \"", type,
              "\" is not built; there are: default linear dynamic llama3");
}

std::string prefix(std::string_view source) {
  return source.empty() ? "" : std::string(source) + ": ";
}

}  // namespace

RopeScaling parse_rope_scaling(const JsonObject& rope, std::int64_t context) {
  RopeScaling scaling;
  const std::string type =
      rope.string_or("rope_type", rope.string_or("type", name_of(RopeScaling::Type::none)));
  scaling.type = scaling_type(type, rope.source());
  if (scaling.type == RopeScaling::Type::none) return scaling;
  scaling.factor = rope.number("factor");
  scaling.original_context =
      rope.integer_or("original_max_position_embeddings", context, 1, kLargestDimension);
  if (scaling.type == RopeScaling::Type::llama3) {
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    rope.at("original_max_position_embeddings");
  }
  return scaling;
}

void check(const ModelConfig& c, std::string_view source) {
  const std::string in = prefix(source);
  const auto positive = [&](const char* what, std::int64_t value) {
    OSTRO_REQUIRE(value > 0, in, what, " is ", value, "; it must be at least 1");
  };
  positive("the vocabulary", c.vocab);
  positive("the hidden size", c.hidden);
  positive("the number of layers", c.layers);
  positive("the number of heads", c.heads);
  positive("the number of KV heads", c.kv_heads);
  positive("the intermediate size", c.inter);
  positive("the context", c.context);
  OSTRO_REQUIRE(c.heads % c.kv_heads == 0, in, c.heads, " heads are not a multiple of ", c.kv_heads,
                " KV heads");
  OSTRO_REQUIRE(c.head_dim > 0 && c.head_dim % 2 == 0, in, "head_dim is ", c.head_dim,
                "; rotary embeddings need a positive even number");
  OSTRO_REQUIRE(c.experts >= 0 && c.experts <= 1024, in, "there are ", c.experts,
                " experts; 0 (dense) to 1024 are possible");
  OSTRO_REQUIRE(c.experts == 0 || (1 <= c.top_k && c.top_k <= c.experts), in, "top-k is ", c.top_k,
                " of ", c.experts, " experts");
  OSTRO_REQUIRE(c.norm_eps > 0, in, "rms_norm_eps is ", c.norm_eps, "; it must be positive");
  OSTRO_REQUIRE(c.rope_theta > 0, in, "rope_theta is ", c.rope_theta, "; it must be positive");
  OSTRO_REQUIRE(c.window >= 0, in, "sliding_window is ", c.window);
  const RopeScaling& rope = c.rope_scaling;
  if (rope.type == RopeScaling::Type::none) return;
  OSTRO_REQUIRE(rope.factor >= 1, in, "the rope scaling factor is ", rope.factor,
                "; it must be at least 1");
  OSTRO_REQUIRE(rope.type != RopeScaling::Type::llama3 ||
                    (rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor),
                in, "llama3 rope scaling has low_freq_factor ", rope.low_freq_factor,
                " and high_freq_factor ", rope.high_freq_factor, "; the second must be the larger");
}

json to_json(const ModelConfig& c) {
  json rope = {{"theta", c.rope_theta}, {"type", name_of(c.rope_scaling.type)}};
  if (c.rope_scaling.type != RopeScaling::Type::none) {
    rope["factor"] = c.rope_scaling.factor;
    rope["original_max_position_embeddings"] = c.rope_scaling.original_context;
    rope["low_freq_factor"] = c.rope_scaling.low_freq_factor;
    rope["high_freq_factor"] = c.rope_scaling.high_freq_factor;
  }
  return {{"architecture", c.architecture},
          {"vocab", c.vocab},
          {"hidden", c.hidden},
          {"layers", c.layers},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"inter", c.inter},
          {"experts", c.experts},
          {"top_k", c.top_k},
          {"context", c.context},
          {"window", c.window},
          {"norm_eps", c.norm_eps},
          {"rope", rope},
          {"tied_embeddings", c.tied_embeddings},
          {"renormalize", c.renormalize},
          {"dtype", dtype_flag(c.dtype)},
          {"bos", c.bos},
          {"eos", c.eos}};
}

ModelConfig from_engine(const json& section, std::string_view source) {
  const JsonObject o(section, source);
  ModelConfig c;
  c.architecture = o.string("architecture");
  c.vocab = o.integer("vocab", 1, kLargestDimension);
  c.hidden = o.integer("hidden", 1, kLargestDimension);
  c.layers = o.integer("layers", 1, kLargestDimension);
  c.heads = o.integer("heads", 1, kLargestDimension);
  c.kv_heads = o.integer("kv_heads", 1, kLargestDimension);
  c.head_dim = o.integer("head_dim", 1, kLargestDimension);
  c.inter = o.integer("inter", 1, kLargestDimension);
  c.experts = o.integer("experts", 0, 1024);
  c.top_k = o.integer("top_k", 0, 1024);
  c.context = o.integer("context", 1, kLargestDimension);
  c.window = o.integer("window", 0, kLargestDimension);
  c.norm_eps = o.number("norm_eps");
  const JsonObject rope(o.at("rope"), source);
  c.rope_theta = rope.number("theta");
  c.rope_scaling = parse_rope_scaling(rope, c.context);
  c.tied_embeddings = o.boolean_or("tied_embeddings", false);
  c.renormalize = o.boolean_or("renormalize", true);
  c.dtype = parse_dtype(o.string("dtype"), source);
  c.bos = o.integer_or("bos", -1, -1, kLargestDimension);
  const json& eos = o.at("eos");
  OSTRO_REQUIRE(eos.is_array(), source, ": \"eos\" is ", shown(eos), "; it must be a list");
  for (const json& id : eos) {
    OSTRO_REQUIRE(id.is_number_integer(), source, ": \"eos\" holds ", shown(id));
    c.eos.push_back(id.get<std::int64_t>());
  }
  check(c, source);
  return c;
}

ModelConfig preset(std::string_view name) {
  ModelConfig c;
  c.norm_eps = 1e-5;
  c.bos = 1;
  c.eos = {2};
  c.vocab = 32000;
  if (name == "mixtral-8x7b" || name == "mixtral-8x22b") {
    const bool large = name == "mixtral-8x22b";
    c.architecture = "MixtralForCausalLM";
    c.hidden = large ? 6144 : 4096;
    c.layers = large ? 56 : 32;
    c.heads = large ? 48 : 32;
    c.kv_heads = 8;
    c.head_dim = 128;
    c.inter = large ? 16384 : 14336;
    c.experts = 8;
    c.top_k = 2;
    c.context = large ? 65536 : 32768;
    c.rope_theta = 1e6;
    return c;
  }
  OSTRO_REQUIRE(name == "llama-7b", "preset is \"", name,
                "\"; there are: mixtral-8x7b mixtral-8x22b llama-7b");
  c.architecture = "LlamaForCausalLM";
  c.hidden = 4096;
  c.layers = 32;
  c.heads = c.kv_heads = 32;
  c.head_dim = 128;
  c.inter = 11008;
  c.context = 2048;
  c.norm_eps = 1e-6;
  return c;
}

DType parse_dtype(std::string_view name, std::string_view source) {
  if (name == "float32" || name == "fp32" || name == "f32") return DType::f32;
  if (name == "float16" || name == "fp16" || name == "f16" || name == "half") return DType::f16;
  if (name == "bfloat16" || name == "bf16") return DType::bf16;
  OSTRO_THROW(InvalidArgument, prefix(source), "dtype is \"", name,
              "\"; it must be float32, float16 or bfloat16");
}

std::string_view dtype_flag(DType dtype) {
  if (dtype == DType::f32) return "float32";
  return dtype == DType::f16 ? "float16" : "bfloat16";
}

}  // namespace ostro::model
