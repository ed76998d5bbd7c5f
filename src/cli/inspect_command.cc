// ostro inspect: what an engine is, before anything is loaded.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/inspect_plan.h"
#include "cli/progress.h"
#include "cli/runtime.h"
#include "model/model.h"
#include "model/tactics_file.h"

namespace ostro::cli {
namespace {

// One line of the summary: a name of fixed width and its value.
template <class... Args>
void line(const char* what, const Args&... value) {
  std::printf("  %-16s %s\n", what, text(value...).c_str());
}

double weight_bytes(const checkpoint::EngineReader& engine) {
  double bytes = 0;
  for (const auto& file : engine.files()) bytes += double(file.bytes);
  return bytes;
}

void print_summary(const checkpoint::EngineReader& engine, const model::EngineConfig& e) {
  const model::ModelConfig& m = e.model;
  const auto tactics = model::read_tactics(engine.dir());
  std::printf("%s\n", engine.dir().string().c_str());
  line("model", m.architecture, ", ", m.layers,
       m.layers == 1 ? " layer, hidden " : " layers, hidden ", m.hidden, ", ", m.heads, " heads, ",
       m.kv_heads, " KV heads of ", m.head_dim, ", vocabulary ", m.vocab);
  if (m.experts > 0)
    line("feed-forward", m.experts, " experts of ", m.inter, ", ", m.top_k, " a token");
  else
    line("feed-forward", "dense, ", m.inter);
  line("context", m.context, m.window ? text(", sliding window ", m.window) : "");
  const auto quantised = [](const char* what, model::Quantization::Format f) {
    return f == model::Quantization::Format::none ? "" : text(", ", what, ' ', model::name(f));
  };
  line("dtype", model::dtype_flag(m.dtype), quantised("weights", m.quantization.weights),
       quantised("KV cache", m.quantization.kv_cache), e.dummy ? ", dummy weights" : "");
  line("ranks", e.mapping.ranks(), ": tp ", e.mapping.tp, " x pp ", e.mapping.pp, ", experts tp ",
       e.mapping.moe_tp, " x ep ", e.mapping.moe_ep);
  line("target", e.target);
  line("limits", "batch ", e.limits.max_batch_size, ", step ", e.limits.max_num_tokens,
       " tokens, input ", e.limits.max_input_len, ", output ", e.limits.max_output_len);
  line("weights", size_text(weight_bytes(engine)), " in ", engine.ranks(),
       engine.ranks() == 1 ? " file" : " files");
  if (tactics) line("tactics", "measured on ", tactics->device, " by Ostro ", tactics->version);
}

// What running the engine takes on each rank, by its own limits.
void print_memory_plan(const checkpoint::EngineReader& engine, const model::EngineConfig& e) {
  std::printf("memory a rank\n");
  for (std::int64_t r = 0; r < e.mapping.ranks(); ++r) {
    const auto kv = double(model::kv_bytes_per_token(e.model, e.mapping, r));
    line(text("rank ", r).c_str(), "weights ",
         size_text(double(engine.files()[std::size_t(r)].bytes)), ", KV cache ", size_text(kv),
         " a token, ", size_text(kv * double(e.model.context)), " a full context of ",
         e.model.context);
  }
}

void print_tensors(const checkpoint::EngineReader& engine) {
  std::printf("tensors\n");
  for (std::string_view name : engine.names()) {
    const checkpoint::MatrixShape shape = engine.shape_of(name);
    std::printf("  %-40s %-5s [%lld, %lld]\n", std::string(name).c_str(),
                std::string(ostro::name(shape.dtype)).c_str(), static_cast<long long>(shape.rows),
                static_cast<long long>(shape.cols));
  }
}

}  // namespace

int inspect_command(const Arguments& args) {
  CLI::App app("Shows what an engine is and what running it takes, without loading it.",
               "ostro inspect");
  std::string engine_dir = "engine_outputs";
  bool verify = false, tensors = false, as_json = false;
  app.add_option("--engine_dir", engine_dir, "the engine")->capture_default_str();
  app.add_flag("--tensors", tensors, "list every tensor");
  app.add_flag("--verify", verify, "read everything and compare the checksums");
  app.add_flag("--json", as_json, "print config.json instead");
  PlanFlags plan;
  plan.add(app);
  if (!parse(app, args)) return 0;
  if (plan.asked(app)) {
    OSTRO_REQUIRE(!tensors && !verify && !as_json,
                  "--plan goes without --tensors, --verify and --json");
    OSTRO_REQUIRE(!plan.shape.given() || app.count("--engine_dir") == 0,
                  "--engine_dir has a shape of its own: give no --preset and no other shape");
    print_plan(plan, engine_dir);
    return 0;
  }
  for (const CLI::Option* option : app.get_options())
    OSTRO_REQUIRE(option->count() == 0 || !PlanFlags::owns(*option), option->get_name(),
                  " and the other flags of a plan go with --plan");

  const checkpoint::EngineReader engine(engine_dir);
  const model::EngineConfig config = read_config(engine);
  if (as_json) {
    std::cout << parse_json(engine.config_text(), "config.json").dump(2) << '\n';
  } else {
    print_summary(engine, config);
    print_memory_plan(engine, config);
    if (tensors) print_tensors(engine);
  }
  if (verify) {
    engine.verify();
    std::fprintf(as_json ? stderr : stdout, "verified: every file has its checksum\n");
  }
  return 0;
}

}  // namespace ostro::cli
