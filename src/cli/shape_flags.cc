#include "cli/shape_flags.h"

namespace ostro::cli {

void ShapeFlags::add(CLI::App& app, const char* group) {
  app.add_option("--preset", preset,
                 "mixtral-8x7b, mixtral-8x22b or llama-7b; flags override parts")
      ->group(group);
  app.add_option("--vocab_size", vocab, "")->group(group);
  app.add_option("--n_layer", layers, "")->group(group);
  app.add_option("--n_positions", positions, "context, tokens")->group(group);
  app.add_option("--n_embd", hidden, "hidden size")->group(group);
  app.add_option("--n_head", heads, "")->group(group);
  app.add_option("--n_kv_head", kv_heads, "")->group(group);
  app.add_option("--inter_size", inter, "of the feed-forward layer or of one expert")->group(group);
  app.add_option("--hidden_act", hidden_act, "silu")->group(group);
  app.add_option("--rms_norm_eps", norm_eps, "")->group(group);
  app.add_option("--moe_num_experts", experts, "")->group(group);
  app.add_option("--moe_top_k", top_k, "")->group(group);
}

bool ShapeFlags::given() const {
  return preset || vocab || layers || positions || hidden || heads || kv_heads || inter ||
         norm_eps || experts || top_k;
}

void ShapeFlags::apply(model::ModelConfig& m) const {
  OSTRO_SUPPORTED(!hidden_act || *hidden_act == "silu", "--hidden_act ", *hidden_act,
                  " is not built; there is: silu");
  const auto set = [](auto& field, const auto& flag) {
    if (flag) field = *flag;
  };
  set(m.vocab, vocab);
  set(m.layers, layers);
  set(m.context, positions);
  set(m.norm_eps, norm_eps);
  set(m.inter, inter);
  // A head keeps its width unless the hidden size or the number of heads changes.
  if (hidden || heads) {
    set(m.hidden, hidden);
    if (heads && !kv_heads && m.kv_heads == m.heads) m.kv_heads = *heads;
    set(m.heads, heads);
    OSTRO_REQUIRE(m.heads > 0 && m.hidden % m.heads == 0, "--n_embd ", m.hidden,
                  " is not a multiple of --n_head ", m.heads);
    m.head_dim = m.hidden / m.heads;
  }
  set(m.kv_heads, kv_heads);
  if (experts && *experts > 0) {
    m.architecture = "MixtralForCausalLM";
    if (m.top_k == 0) m.top_k = std::min<std::int64_t>(2, *experts);
  }
  set(m.experts, experts);
  set(m.top_k, top_k);
}

model::ModelConfig ShapeFlags::model() const {
  model::ModelConfig m = model::preset(preset.value_or("llama-7b"));
  // The seed's tool builds float16 where nothing is said; bfloat16 holds N(0, 0.02) as well.
  m.dtype = preset ? DType::bf16 : DType::f16;
  return m;
}

}  // namespace ostro::cli
