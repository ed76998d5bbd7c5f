#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro::model {
namespace {

using nlohmann::json;

// Mixtral 8x7B, as published.
json mixtral() {
  return json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 32000})");
}

json llama() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 72,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-06, "vocab_size": 64, "model_type": "llama"})");
}

// Meta's form of the same size.
json params() {
  return json::parse(R"({"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
                         "norm_eps": 1e-05, "vocab_size": 64})");
}

ModelConfig parsed(const json& config) { return from_hugging_face(config.dump(), "config.json"); }
ModelConfig parsed_params(const json& p) {
  return from_params(p.dump(), "params.json", 64, 96, DType::bf16);
}

json with(json config, const char* key, const json& value) {
  config[key] = value;
  return config;
}

json without(json config, const char* key) {
  config.erase(key);
  return config;
}

template <class E, class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    return std::string("another kind of error: ") + e.what();
  }
  return "no error";
}

std::string refusal(const json& config) {
  return message<InvalidArgument>([&] { parsed(config); });
}
std::string unsupported(const json& config) {
  return message<Unsupported>([&] { parsed(config); });
}

TEST(HuggingFaceConfig, Mixtral) {
  const ModelConfig c = parsed(mixtral());
  EXPECT_EQ(c.architecture, "MixtralForCausalLM");
  EXPECT_EQ(c.vocab, 32000);
  EXPECT_EQ(c.hidden, 4096);
  EXPECT_EQ(c.layers, 32);
  EXPECT_EQ(c.heads, 32);
  EXPECT_EQ(c.kv_heads, 8);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.inter, 14336);
  EXPECT_EQ(c.experts, 8);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_EQ(c.context, 32768);
  EXPECT_EQ(c.window, 0);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.rope_theta, 1e6);
  EXPECT_EQ(c.rope_scaling.type, RopeScaling::Type::none);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_TRUE(c.renormalize);
  EXPECT_EQ(c.dtype, DType::bf16);
  EXPECT_EQ(c.bos, 1);
  EXPECT_EQ(c.eos, std::vector<std::int64_t>{2});
}

TEST(HuggingFaceConfig, ThePublishedMixtralIsThePreset) {
  EXPECT_EQ(to_json(parsed(mixtral())), to_json(preset("mixtral-8x7b")));
}

// What transformers takes where a key is absent or null.
TEST(HuggingFaceConfig, AbsentAndNullKeyValueHeads) {
  EXPECT_EQ(parsed(llama()).kv_heads, 4);
  EXPECT_EQ(parsed(with(llama(), "num_key_value_heads", nullptr)).kv_heads, 4);
  EXPECT_EQ(parsed(with(llama(), "num_key_value_heads", 2)).kv_heads, 2);
  EXPECT_EQ(parsed(without(mixtral(), "num_key_value_heads")).kv_heads, 8);
  EXPECT_EQ(parsed(with(mixtral(), "num_key_value_heads", nullptr)).kv_heads, 32);
}

TEST(HuggingFaceConfig, AbsentNullAndExplicitHeadDim) {
  EXPECT_EQ(parsed(llama()).head_dim, 16);
  EXPECT_EQ(parsed(with(llama(), "head_dim", nullptr)).head_dim, 16);
  EXPECT_EQ(parsed(with(llama(), "head_dim", 24)).head_dim, 24);
  // hidden / heads need not be whole if head_dim is given.
  json odd = with(llama(), "hidden_size", 66);
  EXPECT_EQ(refusal(odd),
            "config.json: hidden_size 66 is not a multiple of num_attention_heads 4 and there is "
            "no head_dim");
  EXPECT_EQ(parsed(with(odd, "head_dim", 16)).head_dim, 16);
}

TEST(HuggingFaceConfig, SlidingWindow) {
  EXPECT_EQ(parsed(mixtral()).window, 0);
  EXPECT_EQ(parsed(with(mixtral(), "sliding_window", 4096)).window, 4096);
  EXPECT_EQ(parsed(without(mixtral(), "sliding_window")).window, 0);
  json mistral = with(llama(), "architectures", {"MistralForCausalLM"});
  mistral["num_key_value_heads"] = 2;
  EXPECT_EQ(parsed(mistral).window, 4096);
  EXPECT_EQ(parsed(with(mistral, "sliding_window", nullptr)).window, 0);
  EXPECT_EQ(parsed(with(mistral, "sliding_window", 8)).window, 8);
  EXPECT_EQ(refusal(with(mistral, "sliding_window", -1)).substr(0, 34),
            "config.json: \"sliding_window\" is -");
}

TEST(HuggingFaceConfig, RopeThetaAtTheTopOrInRopeParameters) {
  EXPECT_EQ(parsed(llama()).rope_theta, 1e4);
  EXPECT_EQ(parsed(without(mixtral(), "rope_theta")).rope_theta, 1e6);
  EXPECT_EQ(parsed(with(llama(), "rope_theta", 5e5)).rope_theta, 5e5);
  const json inside = {{"rope_theta", 2e4}, {"rope_type", "default"}};
  EXPECT_EQ(parsed(with(llama(), "rope_parameters", inside)).rope_theta, 2e4);
  EXPECT_EQ(parsed(with(with(llama(), "rope_parameters", inside), "rope_theta", 7)).rope_theta,
            2e4);
  EXPECT_EQ(parsed(with(llama(), "rope_parameters", nullptr)).rope_theta, 1e4);
  EXPECT_EQ(refusal(with(llama(), "rope_theta", 0)),
            "config.json: rope_theta is 0; it must be positive");
}

TEST(HuggingFaceConfig, RopeScaling) {
  const auto linear =
      parsed(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 4.0}})).rope_scaling;
  EXPECT_EQ(linear.type, RopeScaling::Type::linear);
  EXPECT_EQ(linear.factor, 4);

  const ModelConfig dynamic =
      parsed(with(llama(), "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}));
  EXPECT_EQ(dynamic.rope_scaling.type, RopeScaling::Type::dynamic);
  EXPECT_EQ(dynamic.rope_scaling.original_context, 256);

  const json three = {{"rope_type", "llama3"},   {"rope_theta", 5e5},
                      {"factor", 8.0},           {"low_freq_factor", 1.0},
                      {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 128}};
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const ModelConfig c = parsed(with(llama(), key, three));
    EXPECT_EQ(c.rope_scaling.type, RopeScaling::Type::llama3) << key;
    EXPECT_EQ(c.rope_theta, 5e5) << key;
    EXPECT_EQ(c.rope_scaling.factor, 8) << key;
    EXPECT_EQ(c.rope_scaling.low_freq_factor, 1) << key;
    EXPECT_EQ(c.rope_scaling.high_freq_factor, 4) << key;
    EXPECT_EQ(c.rope_scaling.original_context, 128) << key;
    EXPECT_EQ(c.context, 256) << key;
  }
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    EXPECT_EQ(refusal(with(llama(), "rope_scaling", without(three, key))),
              std::string("config.json has no \"") + key + "\"");
  EXPECT_EQ(refusal(with(llama(), "rope_scaling", with(three, "high_freq_factor", 1))),
            "config.json: llama3 rope scaling has low_freq_factor 1 and high_freq_factor 1; the "
            "second must be "
            "the larger");
  EXPECT_EQ(unsupported(with(llama(), "rope_scaling", {{"type", "yarn"}, {"factor", 4.0}})),
            "config.json: rope scaling \"yarn\" is not built; there are: default linear dynamic "
            "llama3");
  EXPECT_EQ(refusal(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 0.5}})),
            "config.json: the rope scaling factor is 0.5; it must be at least 1");
}

// Dynamic scaling is of use only beyond the original context, so that the context is larger.
TEST(HuggingFaceConfig, DynamicScalingStretchesTheContext) {
  json config = with(llama(), "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}});
  EXPECT_EQ(parsed(config).context, 512);
  EXPECT_EQ(parsed(config).rope_scaling.original_context, 256);
  config["rope_scaling"]["original_max_position_embeddings"] = 64;
  EXPECT_EQ(parsed(config).context, 256);
  EXPECT_EQ(parsed(config).rope_scaling.original_context, 64);
}

TEST(HuggingFaceConfig, EosMayBeAList) {
  EXPECT_EQ(parsed(llama()).eos, std::vector<std::int64_t>{});
  EXPECT_EQ(parsed(llama()).bos, -1);
  EXPECT_EQ(parsed(with(llama(), "eos_token_id", {3, 5})).eos, (std::vector<std::int64_t>{3, 5}));
  EXPECT_EQ(refusal(with(llama(), "eos_token_id", "2")),
            "config.json: \"eos_token_id\" is \"2\"; it must be a token id or a list of them");
}

TEST(HuggingFaceConfig, Dtype) {
  EXPECT_EQ(parsed(llama()).dtype, DType::f32);
  EXPECT_EQ(parsed(with(llama(), "torch_dtype", "float16")).dtype, DType::f16);
  EXPECT_EQ(parsed(with(llama(), "dtype", "bfloat16")).dtype, DType::bf16);
  EXPECT_EQ(refusal(with(llama(), "dtype", "int8")),
            "config.json: dtype is \"int8\"; it must be float32, float16 or bfloat16");
}

TEST(HuggingFaceConfig, RefusesOtherArchitectures) {
  EXPECT_EQ(unsupported(with(llama(), "architectures", {"GPT2LMHeadModel"})),
            "config.json: architecture \"GPT2LMHeadModel\" is not built; there are: "
            "MixtralForCausalLM LlamaForCausalLM MistralForCausalLM");
  EXPECT_EQ(refusal(without(llama(), "architectures")), "config.json has no \"architectures\"");
  EXPECT_EQ(refusal(with(llama(), "architectures", json::array())),
            "config.json: \"architectures\" is []; it must be a list of names");
}

TEST(HuggingFaceConfig, RefusesWhatTheForwardPassDoesNotHonour) {
  EXPECT_EQ(unsupported(with(llama(), "hidden_act", "gelu")),
            "config.json has \"hidden_act\": \"gelu\"; only silu is built");
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    EXPECT_EQ(unsupported(with(llama(), bias, true)),
              std::string("config.json has \"") + bias + "\": true; only false is built");
    EXPECT_NO_THROW(parsed(with(llama(), bias, false)));
  }
  EXPECT_EQ(unsupported(with(llama(), "quantization_config", {{"bits", 4}})),
            "config.json has a \"quantization_config\" ({\"bits\":4}); quantised checkpoints are "
            "not read yet, only float32, float16 and bfloat16");
  EXPECT_EQ(unsupported(with(llama(), "partial_rotary_factor", 0.5)),
            "config.json has \"partial_rotary_factor\": 0.5; only 1.0 is built");
  EXPECT_EQ(unsupported(with(llama(), "rope_parameters", {{"partial_rotary_factor", 0.5}})),
            "config.json has \"partial_rotary_factor\": 0.5; only 1.0 is built");
  EXPECT_EQ(unsupported(with(llama(), "layer_types", {"full_attention", "sliding_attention"})),
            "config.json has \"layer_types\": [\"full_attention\",\"sliding_attention\"]; only the "
            "same attention in every layer is built");
  EXPECT_NO_THROW(parsed(with(llama(), "layer_types", {"full_attention", "full_attention"})));
}

TEST(HuggingFaceConfig, RefusesAnUnknownKeyUnlessItAsksForNothing) {
  EXPECT_EQ(unsupported(with(llama(), "logit_softcap", 30.0)),
            "config.json has \"logit_softcap\": 30.0, which Ostro does not honour; if it does not "
            "change the forward pass, remove it from the file");
  for (const json& nothing : {json(nullptr), json(false), json(0), json(0.0), json(""),
                              json(json::array()), json(json::object())})
    EXPECT_NO_THROW(parsed(with(llama(), "logit_softcap", nothing))) << nothing;
}

TEST(HuggingFaceConfig, RefusesMissingAndSenselessSizes) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "max_position_embeddings", "rms_norm_eps"})
    EXPECT_EQ(refusal(without(llama(), key)), std::string("config.json has no \"") + key + '"');
  for (const char* key : {"num_local_experts", "num_experts_per_tok"})
    EXPECT_EQ(refusal(without(mixtral(), key)), std::string("config.json has no \"") + key + '"');
  EXPECT_EQ(refusal(with(llama(), "vocab_size", 0)),
            "config.json: \"vocab_size\" is 0; it must be in [1, 1099511627776]");
  EXPECT_EQ(refusal(with(llama(), "vocab_size", "64")),
            "config.json: \"vocab_size\" is \"64\"; it must be an integer");
  EXPECT_EQ(refusal(with(llama(), "hidden_size", 64.5)),
            "config.json: \"hidden_size\" is 64.5; it must be an integer");
  EXPECT_EQ(refusal(with(llama(), "num_key_value_heads", 3)),
            "config.json: 4 heads are not a multiple of 3 KV heads");
  EXPECT_EQ(refusal(with(llama(), "head_dim", 15)),
            "config.json: head_dim is 15; rotary embeddings need a positive even number");
  EXPECT_EQ(refusal(with(mixtral(), "num_experts_per_tok", 9)),
            "config.json: top-k is 9 of 8 experts");
  EXPECT_EQ(refusal(with(llama(), "rms_norm_eps", 0)),
            "config.json: rms_norm_eps is 0; it must be positive");
}

TEST(HuggingFaceConfig, RefusesWhatIsNotJson) {
  EXPECT_EQ(message<InvalidArgument>([] { from_hugging_face("{\"a\": ", "config.json"); }),
            "config.json is not JSON: it goes wrong at byte 7 of 6");
  EXPECT_EQ(message<InvalidArgument>([] { from_hugging_face("[1]", "config.json"); }),
            "config.json must be a JSON object, it is [1]");
}

TEST(Params, DenseAndMixture) {
  const ModelConfig dense = parsed_params(params());
  EXPECT_EQ(dense.architecture, "LlamaForCausalLM");
  EXPECT_EQ(dense.hidden, 64);
  EXPECT_EQ(dense.layers, 2);
  EXPECT_EQ(dense.heads, 4);
  EXPECT_EQ(dense.kv_heads, 2);
  EXPECT_EQ(dense.head_dim, 16);
  EXPECT_EQ(dense.inter, 96);
  EXPECT_EQ(dense.vocab, 64);
  EXPECT_EQ(dense.experts, 0);
  EXPECT_EQ(dense.rope_theta, 1e4);
  EXPECT_EQ(dense.context, 4096);
  EXPECT_EQ(dense.dtype, DType::bf16);
  EXPECT_EQ(dense.eos, std::vector<std::int64_t>{2});

  const ModelConfig moe =
      parsed_params(with(params(), "moe", {{"num_experts", 5}, {"num_experts_per_tok", 3}}));
  EXPECT_EQ(moe.architecture, "MixtralForCausalLM");
  EXPECT_EQ(moe.experts, 5);
  EXPECT_EQ(moe.top_k, 3);
  EXPECT_EQ(moe.rope_theta, 1e6);
  EXPECT_EQ(moe.context, 32768);
}

TEST(Params, AbsentKeys) {
  EXPECT_EQ(parsed_params(without(params(), "n_kv_heads")).kv_heads, 4);
  EXPECT_EQ(parsed_params(without(params(), "vocab_size")).vocab, 64);
  EXPECT_EQ(parsed_params(with(params(), "vocab_size", -1)).vocab, 64);
  EXPECT_EQ(parsed_params(with(params(), "head_dim", 32)).head_dim, 32);
  EXPECT_EQ(parsed_params(with(params(), "rope_theta", 500)).rope_theta, 500);
  EXPECT_EQ(parsed_params(with(params(), "max_seq_len", 77)).context, 77);
  EXPECT_EQ(parsed_params(with(params(), "sliding_window", 16)).window, 16);
}

TEST(Params, Llama3ScaledRope) {
  const ModelConfig c = parsed_params(with(params(), "use_scaled_rope", true));
  EXPECT_EQ(c.rope_scaling.type, RopeScaling::Type::llama3);
  EXPECT_EQ(c.rope_scaling.factor, 8);
  EXPECT_EQ(c.rope_scaling.original_context, 8192);
  EXPECT_EQ(c.context, 131072);
}

TEST(Params, Refusals) {
  const auto refused = [](const json& p) {
    return message<InvalidArgument>([&] { parsed_params(p); });
  };
  EXPECT_EQ(refused(with(params(), "vocab_size", 65)),
            "params.json: \"vocab_size\" is 65, the embedding has 64 rows");
  EXPECT_EQ(refused(with(params(), "hidden_dim", 100)),
            "params.json: \"hidden_dim\" is 100, the feed-forward weights have 96 rows");
  EXPECT_EQ(refused(without(params(), "dim")), "params.json has no \"dim\"");
  EXPECT_EQ(refused(with(params(), "moe", {{"num_experts", 2}, {"num_experts_per_tok", 3}})),
            "params.json: top-k is 3 of 2 experts");
  EXPECT_EQ(message<Unsupported>([&] {
              parsed_params(with(params(), "lora", {{"rank", 4}}));
            }).substr(0, 26),
            "params.json has \"lora\": {\"");
  // heads of no whole size must not be rounded down in silence
  EXPECT_EQ(refused(with(params(), "dim", 66)),
            "params.json: dim 66 is not a multiple of n_heads 4 and there is no head_dim");
}

TEST(EngineSection, SurvivesJson) {
  ModelConfig c = parsed(mixtral());
  c.rope_scaling = {.type = RopeScaling::Type::llama3,
                    .factor = 8,
                    .low_freq_factor = 1,
                    .high_freq_factor = 4,
                    .original_context = 8192};
  c.tied_embeddings = true;
  c.renormalize = false;
  c.window = 128;
  c.bos = -1;
  c.eos = {};
  for (auto type : {RopeScaling::Type::none, RopeScaling::Type::linear, RopeScaling::Type::dynamic,
                    RopeScaling::Type::llama3}) {
    c.rope_scaling.type = type;
    const json section = to_json(c);
    EXPECT_EQ(to_json(from_engine(section, "config.json")), section);
  }
}

TEST(EngineSection, RefusesMissingAndSenselessValues) {
  const json section = to_json(parsed(mixtral()));
  const auto refused = [](const json& s) {
    return message<InvalidArgument>([&] { from_engine(s, "config.json"); });
  };
  for (const char* key :
       {"architecture", "vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "inter",
        "experts", "top_k", "context", "window", "norm_eps", "rope", "dtype", "eos"})
    EXPECT_EQ(refused(without(section, key)), std::string("config.json has no \"") + key + '"');
  EXPECT_EQ(refused(with(section, "eos", 2)), "config.json: \"eos\" is 2; it must be a list");
  EXPECT_EQ(refused(with(section, "eos", {"a"})), "config.json: \"eos\" holds \"a\"");
  EXPECT_EQ(refused(with(section, "kv_heads", 5)),
            "config.json: 32 heads are not a multiple of 5 KV heads");
}

TEST(Preset, Shapes) {
  EXPECT_EQ(preset("mixtral-8x22b").layers, 56);
  EXPECT_EQ(preset("mixtral-8x22b").inter, 16384);
  EXPECT_EQ(preset("llama-7b").inter, 11008);
  EXPECT_EQ(preset("llama-7b").experts, 0);
  for (const char* name : {"mixtral-8x7b", "mixtral-8x22b", "llama-7b"})
    EXPECT_NO_THROW(check(preset(name))) << name;
  EXPECT_EQ(message<InvalidArgument>([] { preset("mixtral-8x8b"); }),
            "preset is \"mixtral-8x8b\"; there are: mixtral-8x7b mixtral-8x22b llama-7b");
}

TEST(DtypeNames, LongAndShort) {
  for (DType t : {DType::f32, DType::f16, DType::bf16}) EXPECT_EQ(parse_dtype(dtype_flag(t)), t);
  EXPECT_EQ(parse_dtype("half"), DType::f16);
  EXPECT_EQ(parse_dtype("bf16"), DType::bf16);
}

}  // namespace
}  // namespace ostro::model
