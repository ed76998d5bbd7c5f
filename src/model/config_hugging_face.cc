// config.json of Hugging Face and params.json of Meta: every key is honoured, known to be harmless,
// or refused by name.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json.h"
#include "model/config.h"
#include "model/rope.h"

namespace ostro::model {
namespace {

using nlohmann::json;

// Read below, or checked below to have the one value that the forward pass honours.
constexpr const char* kHonoured[] = {"architectures",
                                     "attention_bias",
                                     "bos_token_id",
                                     "dtype",
                                     "eos_token_id",
                                     "head_dim",
                                     "hidden_act",
                                     "hidden_size",
                                     "intermediate_size",
                                     "layer_types",
                                     "max_position_embeddings",
                                     "mlp_bias",
                                     "num_attention_heads",
                                     "num_experts_per_tok",
                                     "num_hidden_layers",
                                     "num_key_value_heads",
                                     "num_local_experts",
                                     "partial_rotary_factor",
                                     "rms_norm_eps",
                                     "rope_parameters",
                                     "rope_scaling",
                                     "rope_theta",
                                     "sliding_window",
                                     "tie_word_embeddings",
                                     "torch_dtype",
                                     "vocab_size"};

// Training, generation defaults and bookkeeping: no effect on the logits of a given sequence.
constexpr const char* kHarmless[] = {"_from_model_config",
                                     "_name_or_path",
                                     "add_cross_attention",
                                     "attention_dropout",
                                     "begin_suppress_tokens",
                                     "chunk_size_feed_forward",
                                     "cross_attention_hidden_size",
                                     "diversity_penalty",
                                     "do_sample",
                                     "early_stopping",
                                     "encoder_no_repeat_ngram_size",
                                     "exponential_decay_length_penalty",
                                     "finetuning_task",
                                     "forced_bos_token_id",
                                     "forced_eos_token_id",
                                     "id2label",
                                     "initializer_range",
                                     "is_decoder",
                                     "is_encoder_decoder",
                                     "label2id",
                                     "length_penalty",
                                     "max_length",
                                     "max_sequence_length",
                                     "min_length",
                                     "model_type",
                                     "no_repeat_ngram_size",
                                     "num_beam_groups",
                                     "num_beams",
                                     "num_return_sequences",
                                     "output_attentions",
                                     "output_hidden_states",
                                     "output_router_logits",
                                     "output_scores",
                                     "pad_token_id",
                                     "prefix",
                                     "pretraining_tp",
                                     "problem_type",
                                     "pruned_heads",
                                     "remove_invalid_values",
                                     "repetition_penalty",
                                     "return_dict",
                                     "return_dict_in_generate",
                                     "router_aux_loss_coef",
                                     "router_jitter_noise",
                                     "sep_token_id",
                                     "suppress_tokens",
                                     "task_specific_params",
                                     "temperature",
                                     "tf_legacy_loss",
                                     "tie_encoder_decoder",
                                     "tokenizer_class",
                                     "top_k",
                                     "top_p",
                                     "torchscript",
                                     "transformers_version",
                                     "typical_p",
                                     "unk_token_id",
                                     "use_bfloat16",
                                     "use_cache"};

template <std::size_t N>
bool listed(const char* const (&list)[N], const std::string& key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

// null, false, 0, "", [] and {} ask for nothing.
bool empty_value(const json& v) {
  if (v.is_number()) return v.get<double>() == 0;
  if (v.is_boolean()) return !v.get<bool>();
  if (v.is_string()) return v.get_ref<const std::string&>().empty();
  return v.empty();
}

void refuse_unless(bool honoured, const JsonObject& o, const char* key, const char* wanted) {
  OSTRO_SUPPORTED(honoured, o.source(), " has \"", key, "\": ", shown(o.at(key)), "; only ", wanted,
                  " is built");
}

void refuse_what_is_not_honoured(const JsonObject& o) {
  if (o.has("quantization_config"))
    OSTRO_THROW(Unsupported, o.source(), " has a \"quantization_config\" (",
                shown(o.at("quantization_config")),
                "); quantised checkpoints are not read yet, only float32, float16 and bfloat16");
  for (const char* bias : {"attention_bias", "mlp_bias"})
    if (o.has(bias)) refuse_unless(!o.boolean_or(bias, false), o, bias, "false");
  if (o.has("hidden_act")) refuse_unless(o.string("hidden_act") == "silu", o, "hidden_act", "silu");
  if (o.has("partial_rotary_factor"))
    refuse_unless(o.number("partial_rotary_factor") == 1, o, "partial_rotary_factor", "1.0");
  if (o.has("layer_types")) {
    const json& types = o.at("layer_types");
    const char* wanted = o.has("sliding_window") ? "sliding_attention" : "full_attention";
    const bool uniform = types.is_array() && std::all_of(types.begin(), types.end(),
                                                         [&](auto& t) { return t == wanted; });
    refuse_unless(uniform, o, "layer_types", "the same attention in every layer");
  }
  for (const auto& [key, value] : o.value().items())
    OSTRO_SUPPORTED(listed(kHonoured, key) || listed(kHarmless, key) || empty_value(value),
                    o.source(), " has \"", key, "\": ", shown(value),
                    ", which Ostro does not honour; if it does not change the forward pass, "
                    "remove it from the file");
}

std::string architecture_of(const JsonObject& o) {
  const json& list = o.at("architectures");
  OSTRO_REQUIRE(list.is_array() && !list.empty() && list[0].is_string(), o.source(),
                ": \"architectures\" is ", shown(list), "; it must be a list of names");
  const auto name = list[0].get<std::string>();
  OSTRO_SUPPORTED(
      name == "MixtralForCausalLM" || name == "LlamaForCausalLM" || name == "MistralForCausalLM",
      o.source(), ": architecture \"", name,
      "\" is not built; there are: MixtralForCausalLM LlamaForCausalLM MistralForCausalLM");
  return name;
}

std::vector<std::int64_t> token_ids(const JsonObject& o, const char* key) {
  std::vector<std::int64_t> ids;
  if (!o.has(key)) return ids;
  const json& v = o.at(key);
  const json list = v.is_array() ? v : json::array({v});
  for (const json& id : list) {
    OSTRO_REQUIRE(id.is_number_integer(), o.source(), ": \"", key, "\" is ", shown(v),
                  "; it must be a token id or a list of them");
    ids.push_back(id.get<std::int64_t>());
  }
  return ids;
}

}  // namespace

ModelConfig from_hugging_face(std::string_view text, std::string_view source) {
  const json parsed = parse_json(text, source);
  const JsonObject o(parsed, source);
  ModelConfig c;
  c.architecture = architecture_of(o);
  refuse_what_is_not_honoured(o);

  c.vocab = o.integer("vocab_size", 1, kLargestDimension);
  c.hidden = o.integer("hidden_size", 1, kLargestDimension);
  c.layers = o.integer("num_hidden_layers", 1, 100000);
  c.heads = o.integer("num_attention_heads", 1, 100000);
  // What an absent key means is transformers' choice: null is the number of heads in all three, but
  // Mixtral and Mistral take 8 KV heads, and Mistral a window of 4096, where nothing is said.
  const bool llama = c.architecture == "LlamaForCausalLM";
  const bool says_kv_heads = o.value().contains("num_key_value_heads");
  c.kv_heads = o.integer_or("num_key_value_heads", llama || says_kv_heads ? c.heads : 8, 1, 100000);
  if (!o.has("head_dim"))
    OSTRO_REQUIRE(c.hidden % c.heads == 0, source, ": hidden_size ", c.hidden,
                  " is not a multiple of num_attention_heads ", c.heads,
                  " and there is no head_dim");
  c.head_dim = o.integer_or("head_dim", c.hidden / c.heads, 1, kLargestDimension);
  c.inter = o.integer("intermediate_size", 1, kLargestDimension);
  if (c.architecture == "MixtralForCausalLM") {
    c.experts = o.integer("num_local_experts", 1, 1024);
    c.top_k = o.integer("num_experts_per_tok", 1, 1024);
  }
  c.context = o.integer("max_position_embeddings", 1, kLargestDimension);
  const bool says_window = o.value().contains("sliding_window");
  const bool mistral = c.architecture == "MistralForCausalLM";
  c.window =
      o.integer_or("sliding_window", mistral && !says_window ? 4096 : 0, 1, kLargestDimension);
  c.norm_eps = o.number("rms_norm_eps");

  // transformers 5 keeps everything in rope_parameters; before, rope_theta stood at the top level.
  const char* key = o.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  c.rope_theta = o.number_or("rope_theta", c.experts > 0 ? 1e6 : 1e4);
  if (o.has(key)) {
    const JsonObject rope(o.at(key), source);
    c.rope_theta = rope.number_or("rope_theta", c.rope_theta);
    if (rope.has("partial_rotary_factor"))
      refuse_unless(rope.number("partial_rotary_factor") == 1, rope, "partial_rotary_factor",
                    "1.0");
    c.rope_scaling = parse_rope_scaling(rope, c.context);
    // max_position_embeddings is the original context then, unless that stands there by itself.
    if (c.rope_scaling.type == RopeScaling::Type::dynamic &&
        !rope.has("original_max_position_embeddings"))
      c.context = std::int64_t(double(c.context) * std::max(1.0, c.rope_scaling.factor));
  }

  c.tied_embeddings = o.boolean_or("tie_word_embeddings", false);
  c.dtype = parse_dtype(o.string_or("dtype", o.string_or("torch_dtype", "float32")), source);
  const auto bos = token_ids(o, "bos_token_id");
  c.bos = bos.empty() ? -1 : bos[0];
  c.eos = token_ids(o, "eos_token_id");
  check(c, source);
  return c;
}

ModelConfig from_params(std::string_view text, std::string_view source, std::int64_t vocab_rows,
                        std::int64_t inter, DType dtype) {
  constexpr const char* kKnown[] = {"dim",
                                    "n_layers",
                                    "n_heads",
                                    "n_kv_heads",
                                    "head_dim",
                                    "hidden_dim",
                                    "norm_eps",
                                    "vocab_size",
                                    "rope_theta",
                                    "moe",
                                    "sliding_window",
                                    "max_seq_len",
                                    "max_batch_size",
                                    "multiple_of",
                                    "ffn_dim_multiplier",
                                    "use_scaled_rope",
                                    "model_parallel_size"};
  const json parsed = parse_json(text, source);
  const JsonObject o(parsed, source);
  for (const auto& [key, value] : o.value().items())
    OSTRO_SUPPORTED(listed(kKnown, key) || empty_value(value), source, " has \"", key,
                    "\": ", shown(value), ", which Ostro does not honour");
  ModelConfig c;
  c.vocab = vocab_rows;
  const std::int64_t vocab = o.integer_or("vocab_size", -1, -1, kLargestDimension);
  OSTRO_REQUIRE(vocab == -1 || vocab == vocab_rows, source, ": \"vocab_size\" is ", vocab,
                ", the embedding has ", vocab_rows, " rows");
  c.hidden = o.integer("dim", 1, kLargestDimension);
  c.layers = o.integer("n_layers", 1, 100000);
  c.heads = o.integer("n_heads", 1, 100000);
  c.kv_heads = o.integer_or("n_kv_heads", c.heads, 1, 100000);
  OSTRO_REQUIRE(o.has("head_dim") || c.hidden % c.heads == 0, source, ": dim ", c.hidden,
                " is not a multiple of n_heads ", c.heads, " and there is no head_dim");
  c.head_dim = o.integer_or("head_dim", c.hidden / c.heads, 1, kLargestDimension);
  c.inter = inter;
  const std::int64_t hidden_dim = o.integer_or("hidden_dim", inter, 1, kLargestDimension);
  OSTRO_REQUIRE(hidden_dim == inter, source, ": \"hidden_dim\" is ", hidden_dim,
                ", the feed-forward weights have ", inter, " rows");
  c.norm_eps = o.number("norm_eps");
  c.window = o.integer_or("sliding_window", 0, 1, kLargestDimension);
  c.architecture = "LlamaForCausalLM";
  if (o.has("moe")) {
    const JsonObject moe(o.at("moe"), source);
    c.architecture = "MixtralForCausalLM";
    c.experts = moe.integer("num_experts", 1, 1024);
    c.top_k = moe.integer("num_experts_per_tok", 1, 1024);
  }
  // Mistral's reference code takes 1e6 for a mixture of experts that does not say; Meta's 1e4.
  c.rope_theta = o.number_or("rope_theta", c.experts > 0 ? 1e6 : 1e4);
  c.context = o.integer_or("max_seq_len", c.experts > 0 ? 32768 : 4096, 1, kLargestDimension);
  if (o.boolean_or("use_scaled_rope", false)) {
    c.rope_scaling = {.type = RopeScaling::Type::llama3,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_context = 8192};
    c.context = o.integer_or("max_seq_len", 131072, 1, kLargestDimension);
  }
  c.dtype = dtype;
  c.bos = 1;
  c.eos = {2};
  check(c, source);
  return c;
}

}  // namespace ostro::model
