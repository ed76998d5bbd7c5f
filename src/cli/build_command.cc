// ostro build: the seed's build.py, without Python, GPU or much memory.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "builder/build.h"
#include "builder/sources.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "cli/quantisation_flags.h"
#include "cli/shape_flags.h"
#include "cli/tune_engine.h"

namespace ostro::cli {
namespace {

using model::EngineConfig;
using model::ModelConfig;

struct BuildFlags {
  std::string model_dir, output_dir = "engine_outputs", dtype = "auto", target = "neutral";

  ShapeFlags shape;  // of a dummy engine

  std::int64_t world_size = 0;
  model::Mapping mapping;
  std::int64_t moe_tp = -1, moe_ep = -1;
  bool parallel_embedding = false;
  int embedding_sharding_dim = 0;
  bool tune = false;
  bool parallel_build = false;
  int workers = 1;

  std::optional<std::int64_t> max_input_len, max_output_len;
  model::EngineLimits limits;
  std::optional<double> rotary_base;
  std::vector<std::string> rotary_scaling;
  std::string renorm_mode = "RENORMALIZE";

  bool inflight_batching = false, remove_padding = false, paged_kv = false, context_fmha = false,
       fmha_fp32 = false, rmsnorm_plugin = false, load_by_shard = false;
  std::string attention_plugin, gemm_plugin;

  QuantisationFlags quantisation;
  bool int8_kv = false, smooth_quant = false, per_group = false, per_channel = false,
       per_token = false;
  std::string quant_ckpt;
  std::int64_t group_size = 0;
  LogFlag log;

  void add(CLI::App& app);
  void add_recorded(CLI::App& app);
  void add_quantisation(CLI::App& app);
  void refuse_what_is_not_built() const;
  void apply_rotary(ModelConfig&) const;
  model::Mapping checked_mapping(const ModelConfig&) const;
  nlohmann::json recorded() const;
};

void BuildFlags::add(CLI::App& app) {
  app.add_option("--model_dir", model_dir,
                 "Hugging Face or Meta checkpoint; none, or one with a config.json and no weights: "
                 "dummy weights, N(0, 0.02)");
  app.add_option("--output_dir", output_dir, "the engine; one that is there is replaced")
      ->capture_default_str();
  app.add_option("--dtype", dtype, "auto (the checkpoint's), float32, float16 or bfloat16")
      ->capture_default_str();
  app.add_option("--target", target,
                 "neutral, cpu or cuda; recorded: this build's layout is the same for all")
      ->capture_default_str();
  app.add_flag("--tune", tune,
               "then measure on this machine's GPU which tiles the products of the ranks take; for "
               "engines that run on such a GPU");

  const char* ranks = "Ranks";
  app.add_option("--world_size", world_size, "must be tp_size x pp_size; default: that")
      ->group(ranks);
  app.add_option("--tp_size", mapping.tp, "tensor-parallel ranks")
      ->capture_default_str()
      ->group(ranks);
  app.add_option("--pp_size", mapping.pp, "pipeline stages")->capture_default_str()->group(ranks);
  app.add_option("--moe_tp_size", moe_tp, "ranks that split each expert; -1: all of tp")
      ->capture_default_str()
      ->group(ranks);
  app.add_option("--moe_ep_size", moe_ep,
                 "groups that hold different experts; -1: tp / moe_tp_size")
      ->capture_default_str()
      ->group(ranks);
  app.add_flag("--use_parallel_embedding", parallel_embedding, "split the embedding table over tp")
      ->group(ranks);
  app.add_option("--embedding_sharding_dim", embedding_sharding_dim,
                 "0: by vocabulary, 1: by hidden")
      ->capture_default_str()
      ->group(ranks);
  app.add_flag("--parallel_build", parallel_build, "build all ranks side by side")->group(ranks);
  app.add_option("--workers", workers, "ranks built side by side")
      ->capture_default_str()
      ->group(ranks);

  const char* limit = "Limits, kept in config.json";
  app.add_option("--max_batch_size", limits.max_batch_size, "requests in one step")
      ->capture_default_str()
      ->group(limit);
  app.add_option("--max_input_len", max_input_len, "tokens; default: the model's context")
      ->group(limit);
  app.add_option("--max_output_len", max_output_len, "tokens; default: the model's context")
      ->group(limit);
  app.add_option("--max_beam_width", limits.max_beam_width, "beams of one request")
      ->capture_default_str()
      ->group(limit);
  app.add_option("--max_num_tokens", limits.max_num_tokens, "tokens of one step")
      ->capture_default_str()
      ->group(limit);
  app.add_option("--tokens_per_block", limits.tokens_per_block, "of the KV cache; a power of two")
      ->capture_default_str()
      ->group(limit);

  const char* model = "Model";
  app.add_option("--rotary_base", rotary_base, "default: the checkpoint's")->group(model);
  app.add_option("--rotary_scaling", rotary_scaling, "TYPE FACTOR: linear, dynamic or llama3")
      ->expected(2)
      ->group(model);
  app.add_option("--moe_renorm_mode", renorm_mode, "RENORMALIZE (1) or NONE (0): expert weights")
      ->capture_default_str()
      ->group(model);
  shape.add(app, "Shape of a dummy engine (default: LLaMA-7B)");
  add_recorded(app);
  add_quantisation(app);
  log.add(app, "info");
}

void BuildFlags::add_recorded(CLI::App& app) {
  const char* group =
      "Accepted, recorded, changing nothing: Ostro always packs, pages, fuses and streams";
  app.add_flag("--use_inflight_batching", inflight_batching, "")->group(group);
  app.add_option("--use_gpt_attention_plugin", attention_plugin, "[dtype]")
      ->expected(0, 1)
      ->group(group);
  app.add_flag("--remove_input_padding", remove_padding, "")->group(group);
  app.add_flag("--paged_kv_cache", paged_kv, "")->group(group);
  app.add_flag("--enable_context_fmha", context_fmha, "")->group(group);
  app.add_flag("--enable_context_fmha_fp32_acc", fmha_fp32, "")->group(group);
  app.add_option("--use_gemm_plugin", gemm_plugin, "[dtype]")->expected(0, 1)->group(group);
  app.add_flag("--use_rmsnorm_plugin", rmsnorm_plugin, "")->group(group);
  app.add_flag("--load_by_shard", load_by_shard, "")->group(group);
}

void BuildFlags::add_quantisation(CLI::App& app) {
  quantisation.add(app, "Quantisation", "");
  const char* group = "Not built yet (refused)";
  app.add_flag("--int8_kv_cache", int8_kv, "")->group(group);
  app.add_option("--quant_ckpt_path", quant_ckpt, "")->group(group);
  app.add_flag("--per_group", per_group, "")->group(group);
  app.add_option("--group_size", group_size, "")->group(group);
  app.add_flag("--use_smooth_quant", smooth_quant, "")->group(group);
  app.add_flag("--per_channel", per_channel, "")->group(group);
  app.add_flag("--per_token", per_token, "")->group(group);
}

void BuildFlags::refuse_what_is_not_built() const {
  const std::pair<const char*, bool> refused[] = {{"--int8_kv_cache", int8_kv},
                                                  {"--quant_ckpt_path", !quant_ckpt.empty()},
                                                  {"--per_group", per_group},
                                                  {"--group_size", group_size != 0},
                                                  {"--use_smooth_quant", smooth_quant},
                                                  {"--per_channel", per_channel},
                                                  {"--per_token", per_token}};
  for (const auto& [flag, given] : refused)
    OSTRO_SUPPORTED(!given, flag,
                    " is not built yet: weights are float32, float16, bfloat16, fp8, int8 or int4, "
                    "the KV cache float32, float16, bfloat16 or fp8");
  OSTRO_REQUIRE(target == "neutral" || target == "cpu" || target == "cuda", "--target is \"",
                target, "\"; it must be neutral, cpu or cuda");
  OSTRO_REQUIRE(!tune || target != "cpu", "--tune measures on a GPU, but --target is cpu");
}

void BuildFlags::apply_rotary(ModelConfig& m) const {
  if (rotary_base) m.rope_theta = *rotary_base;
  if (rotary_scaling.empty()) return;
  const std::string& type = rotary_scaling[0];
  model::RopeScaling& rope = m.rope_scaling;
  OSTRO_SUPPORTED(type == "linear" || type == "dynamic" || type == "llama3", "--rotary_scaling ",
                  type, " is not built; there are: linear dynamic llama3");
  char* end = nullptr;
  rope.factor = std::strtod(rotary_scaling[1].c_str(), &end);
  OSTRO_REQUIRE(*end == '\0' && rope.factor >= 1, "--rotary_scaling ", type, ' ', rotary_scaling[1],
                ": the factor must be a number, 1 or more");
  rope.original_context = m.context;
  rope.type = model::RopeScaling::Type::linear;
  if (type == "dynamic") rope.type = model::RopeScaling::Type::dynamic;
  if (type == "llama3") {  // the constants of Llama 3.1
    rope.type = model::RopeScaling::Type::llama3;
    rope.low_freq_factor = 1;
    rope.high_freq_factor = 4;
    rope.original_context = 8192;
    return;
  }
  m.context = std::int64_t(double(m.context) * rope.factor);
}

model::Mapping BuildFlags::checked_mapping(const ModelConfig& config) const {
  model::Mapping m = mapping;
  OSTRO_REQUIRE(m.tp >= 1 && m.pp >= 1, "--tp_size is ", m.tp, " and --pp_size is ", m.pp,
                "; both must be at least 1");
  OSTRO_REQUIRE(world_size == 0 || world_size == m.ranks(), "--world_size is ", world_size,
                ", but tp_size ", m.tp, " x pp_size ", m.pp, " is ", m.ranks());
  m.moe_ep = moe_ep > 0 ? moe_ep : moe_tp > 0 ? std::max<std::int64_t>(1, m.tp / moe_tp) : 1;
  m.moe_tp = moe_tp > 0 ? moe_tp : m.tp / m.moe_ep;
  OSTRO_REQUIRE(embedding_sharding_dim == 0 || embedding_sharding_dim == 1,
                "--embedding_sharding_dim is ", embedding_sharding_dim,
                "; it must be 0 (vocabulary) or 1 (hidden)");
  m.parallel_embedding = parallel_embedding;
  m.embedding_by_hidden = embedding_sharding_dim == 1;
  check(m, config);
  return m;
}

nlohmann::json BuildFlags::recorded() const {
  return {{"use_inflight_batching", inflight_batching},
          {"use_gpt_attention_plugin", attention_plugin},
          {"remove_input_padding", remove_padding},
          {"paged_kv_cache", paged_kv},
          {"enable_context_fmha", context_fmha},
          {"enable_context_fmha_fp32_acc", fmha_fp32},
          {"use_gemm_plugin", gemm_plugin},
          {"use_rmsnorm_plugin", rmsnorm_plugin},
          {"load_by_shard", load_by_shard}};
}

EngineConfig engine_config(const BuildFlags& flags, const checkpoint::Checkpoint* source) {
  EngineConfig e;
  e.model = source ? builder::model_of(*source) : flags.shape.model();
  const bool weights = source && source->has_weights();
  OSTRO_REQUIRE(
      !weights || !flags.shape.given(), flags.model_dir,
      " has weights: --preset and the shape flags (--n_layer, ...) are for dummy engines");
  flags.shape.apply(e.model);
  flags.apply_rotary(e.model);
  OSTRO_REQUIRE(flags.renorm_mode == "RENORMALIZE" || flags.renorm_mode == "1" ||
                    flags.renorm_mode == "NONE" || flags.renorm_mode == "0",
                "--moe_renorm_mode is \"", flags.renorm_mode, "\"; it must be RENORMALIZE or NONE");
  e.model.renormalize = flags.renorm_mode == "RENORMALIZE" || flags.renorm_mode == "1";
  if (flags.dtype != "auto") e.model.dtype = model::parse_dtype(flags.dtype);
  e.model.quantization = flags.quantisation.quantization();
  model::check(e.model);
  e.mapping = flags.checked_mapping(e.model);
  e.limits = flags.limits;
  e.limits.max_input_len = flags.max_input_len.value_or(e.model.context);
  e.limits.max_output_len = flags.max_output_len.value_or(e.model.context);
  model::check(e.limits, e.model);
  e.target = flags.target;
  return e;
}

}  // namespace

int build_command(const Arguments& args) {
  CLI::App app("Turns a checkpoint, or dummy weights, into an engine.", "ostro build");
  BuildFlags flags;
  flags.add(app);
  if (!parse(app, args)) return 0;
  flags.refuse_what_is_not_built();
  OSTRO_REQUIRE(flags.workers >= 1, "--workers is ", flags.workers, "; it must be at least 1");
  const Log log = flags.log.log();

  std::optional<checkpoint::Checkpoint> source;
  if (!flags.model_dir.empty()) source.emplace(flags.model_dir);
  builder::BuildOptions options;
  options.config = engine_config(flags, source ? &*source : nullptr);
  options.flags_json = flags.recorded().dump();
  options.output_dir = flags.output_dir;
  options.workers = flags.parallel_build ? int(options.config.mapping.ranks()) : flags.workers;
  const std::unique_ptr<ops::Backend> gpu = flags.tune ? gpu_to_tune() : nullptr;
  BuildProgressBar bar(!log.enabled(LogLevel::info));
  options.progress = [&](const builder::BuildProgress& p) { bar.show(p); };

  if (!source || !source->has_weights())
    log.warning("there are no weights", source ? " in " + flags.model_dir : "",
                ": this engine gets dummy ones, and every run will say so");
  const builder::BuildSummary done = builder::build(options, source ? &*source : nullptr);
  bar.clear();
  log.info("built ", flags.output_dir, ": ", done.files, done.files == 1 ? " file, " : " files, ",
           size_text(double(done.bytes)), " in ", done.seconds, " s (",
           size_text(double(done.bytes) / std::max(done.seconds, 1e-3)), "/s), peak memory ",
           size_text(double(done.peak_memory_bytes)));
  if (gpu) tune_engine(flags.output_dir, options.config, *gpu, log, !log.enabled(LogLevel::info));
  return 0;
}

}  // namespace ostro::cli
