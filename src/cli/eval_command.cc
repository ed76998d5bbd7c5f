// ostro eval perplexity: how well an engine predicts texts, and how far it is from another engine.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/json_lines.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/runtime.h"
#include "comm/world.h"
#include "eval/scorer.h"
#include "text/tokenizer.h"

namespace ostro::cli {
namespace {

using nlohmann::json;

struct EvalFlags {
  RuntimeFlags runtime;
  std::string tokenizer_dir;
  std::string dataset;
  std::string reference_dir;
  std::int64_t max_length = 0;
  std::int64_t stride = 0;
  std::int64_t documents = 0;
  bool json = false;

  void add(CLI::App& app) {
    runtime.add(app);
    app.add_option("--tokenizer_dir", tokenizer_dir, "tokenizer for lines of text");
    app.add_option("--dataset", dataset,
                   "a .jsonl file: {\"text\": ...} or {\"input_ids\": [...]} a line; bos is put "
                   "before a text")
        ->required();
    app.add_option("--max_length", max_length,
                   "cut documents after this many tokens; default: the context");
    app.add_option("--stride", stride,
                   "score longer documents whole, by windows of --max_length so many tokens apart; "
                   "default: cut them");
    app.add_option("--max_documents", documents, "score the first so many lines; default: all");
    app.add_option("--reference_engine_dir", reference_dir,
                   "another engine of the same vocabulary: tells the KL divergence of the "
                   "predictions from its own; both run on one rank");
    app.add_flag("--json", json, "print one JSON object: nats_per_token, perplexity, tokens ...");
  }
};

std::vector<std::int32_t> ids_of(const JsonObject& line, const txt::Tokenizer* tokenizer) {
  if (line.has("input_ids")) return line.token_ids("input_ids");
  OSTRO_REQUIRE(line.has("text"), line.source(), " has neither \"text\" nor \"input_ids\"");
  OSTRO_REQUIRE(tokenizer, line.source(), " is text: give --tokenizer_dir");
  return tokenizer->encode(line.string("text"));
}

std::vector<std::vector<std::int32_t>> read_documents(const EvalFlags& flags,
                                                      const txt::Tokenizer* tokenizer) {
  std::vector<std::vector<std::int32_t>> documents;
  for_each_json_line(flags.dataset, [&](const JsonObject& line) {
    documents.push_back(ids_of(line, tokenizer));
    OSTRO_REQUIRE(!documents.back().empty(), line.source(), " has no token");
    return flags.documents == 0 || std::int64_t(documents.size()) < flags.documents;
  });
  OSTRO_REQUIRE(!documents.empty(), flags.dataset, " has no document");
  return documents;
}

constexpr std::int64_t kLogitRows = 512;  // enough for the head to run at its speed

// Tokens of the longest window.
std::int64_t window_length(const EvalFlags& flags, std::int64_t context) {
  return flags.max_length > 0 ? std::min(flags.max_length, context) : context;
}

eval::Texts texts_of(const EvalFlags& flags, std::vector<std::vector<std::int32_t>> documents,
                     std::int64_t context) {
  const std::int64_t longest = window_length(flags, context);
  OSTRO_REQUIRE(flags.stride >= 0 && flags.stride <= longest, "--stride is ", flags.stride,
                "; it must be from 1 to the ", longest, " tokens of a window");
  return {.documents = std::move(documents), .length = longest, .stride = flags.stride};
}

json to_json(const eval::Score& score, std::size_t documents) {
  return {{"nats_per_token", score.mean()},
          {"perplexity", std::exp(score.mean())},
          {"tokens", score.tokens},
          {"documents", documents}};
}

void print(const EvalFlags& flags, const eval::Score& score, std::size_t documents) {
  OSTRO_REQUIRE(score.tokens > 0, flags.dataset, " has no token after the first of each document");
  if (flags.json) return;
  std::printf("%zu documents, %lld tokens: %.5f nats a token, perplexity %.4f\n", documents,
              static_cast<long long>(score.tokens), score.mean(), std::exp(score.mean()));
}

void score(const EvalFlags& flags, std::vector<std::vector<std::int32_t>> documents,
           Session& session) {
  const eval::Texts texts = texts_of(flags, std::move(documents), session.config.model.context);
  engine::Engine engine(session.rank, session.config.model);
  const std::size_t count = texts.documents.size();
  ProgressBar bar("eval", flags.json);
  const eval::Score score = eval::score(engine, texts, [&](double done) {
    bar.show(done, [&] { return text(count, " documents"); });
  });
  bar.clear();
  print(flags, score, count);
  if (flags.json) std::printf("%s\n", to_json(score, count).dump().c_str());
}

// Both engines take the same steps, on one device that holds both: what --max_batch_size and the
// like leave open is set to what they have in common and to a KV cache of a few windows.
RuntimeFlags shared_runtime(const EvalFlags& flags, const model::EngineConfig& model,
                            const model::EngineConfig& reference) {
  OSTRO_REQUIRE(model.model.vocab == reference.model.vocab,
                "the vocabularies differ: ", flags.runtime.engine_dir, " has ", model.model.vocab,
                " tokens, ", flags.reference_dir, " has ", reference.model.vocab);
  RuntimeFlags runtime = flags.runtime;
  OSTRO_REQUIRE(runtime.tp_size <= 1 && runtime.pp_size <= 1,
                "--reference_engine_dir compares on one rank; --tp_size is ", runtime.tp_size,
                " and --pp_size is ", runtime.pp_size);
  runtime.tp_size = runtime.pp_size = 1;
  const auto least = [](std::int64_t given, std::int64_t a, std::int64_t b) {
    return given > 0 ? std::min({given, a, b}) : std::min(a, b);
  };
  runtime.max_batch_size =
      least(runtime.max_batch_size > 0 ? runtime.max_batch_size : eval::kMostOpen,
            model.limits.max_batch_size, reference.limits.max_batch_size);
  runtime.max_num_tokens =
      least(runtime.max_num_tokens, model.limits.max_num_tokens, reference.limits.max_num_tokens);
  const std::int64_t context = std::min(model.model.context, reference.model.context);
  if (runtime.kv_tokens == 0)
    runtime.kv_tokens = 2 * window_length(flags, context) + runtime.max_num_tokens;
  return runtime;
}

void compare(const EvalFlags& flags, const RuntimeFlags& runtime,
             std::vector<std::vector<std::int32_t>> documents,
             const checkpoint::EngineReader& reader, const model::EngineConfig& reference,
             Session& session) {
  const model::ModelConfig& model = session.config.model;
  const eval::Texts texts =
      texts_of(flags, std::move(documents), std::min(model.context, reference.model.context));
  const std::unique_ptr<comm::World> world = comm::make_single_world();
  model::EngineWeights weights(reader);
  engine::Rank rank(weights, reference, {}, session.backend, world->communicator(),
                    {.max_batch_size = runtime.max_batch_size,
                     .max_num_tokens = runtime.max_num_tokens,
                     .max_logit_rows = kLogitRows,
                     .kv_cache_tokens = runtime.kv_tokens,
                     .record_steps = runtime.cuda_graphs,
                     .fp8_prompts = runtime.fp8_prompts && reference.model.quantization.weights ==
                                                               model::Quantization::Format::int4},
                    session.log);
  engine::Engine engine(session.rank, model), other(rank, reference.model);
  const std::size_t count = texts.documents.size();
  ProgressBar bar("eval", flags.json);
  const eval::Comparison c = eval::compare(engine, other, model.vocab, texts, [&](double done) {
    bar.show(done, [&] { return text(count, " documents"); });
  });
  bar.clear();
  print(flags, c.model, count);
  const eval::Divergences& d = c.divergences;
  if (flags.json) {
    json out = to_json(c.model, count);
    out["reference_nats_per_token"] = c.reference.mean();
    out["reference_perplexity"] = std::exp(c.reference.mean());
    out["kl_mean"] = d.mean();
    out["kl_max"] = d.max();
    out["top1_agreement"] = d.top1_agreement();
    std::printf("%s\n", out.dump().c_str());
  } else {
    std::printf("reference: %.5f nats a token, perplexity %.4f\n", c.reference.mean(),
                std::exp(c.reference.mean()));
    std::printf(
        "KL(reference || engine): mean %.6f nats a token, at most %.6f; the same likeliest token "
        "for %.2f %%\n",
        d.mean(), d.max(), 100 * d.top1_agreement());
  }
}

}  // namespace

int eval_command(const Arguments& args) {
  OSTRO_REQUIRE(
      !args.empty() && (args[0] == "perplexity" || args[0] == "--help" || args[0] == "-h"),
      "ostro eval needs what to measure; there is: perplexity");
  CLI::App app("Scores texts: the mean negative log-likelihood of every token after the first.",
               "ostro eval perplexity");
  EvalFlags flags;
  flags.add(app);
  if (!parse(app, args[0] == "perplexity" ? Arguments(args.begin() + 1, args.end()) : args))
    return 0;

  std::vector<std::vector<std::int32_t>> documents;
  if (prints()) {
    std::unique_ptr<txt::Tokenizer> tokenizer;
    if (!flags.tokenizer_dir.empty()) tokenizer = txt::load_tokenizer(flags.tokenizer_dir);
    documents = read_documents(flags, tokenizer.get());
  }
  if (flags.reference_dir.empty())
    return run_on_ranks(flags.runtime, kLogitRows,
                        [&](Session& session) { score(flags, documents, session); });
  const checkpoint::EngineReader reader(flags.reference_dir);
  const model::EngineConfig reference = read_config(reader);
  const RuntimeFlags runtime = shared_runtime(flags, config_of(flags.runtime), reference);
  return run_on_ranks(runtime, kLogitRows, [&](Session& session) {
    compare(flags, runtime, documents, reader, reference, session);
  });
}

}  // namespace ostro::cli
