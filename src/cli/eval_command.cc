// ostro eval perplexity: how well an engine predicts texts.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/json_lines.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/runtime.h"
#include "eval/scorer.h"
#include "text/tokenizer.h"

namespace ostro::cli {
namespace {

using nlohmann::json;

struct EvalFlags {
  RuntimeFlags runtime;
  std::string tokenizer_dir;
  std::string dataset;
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
    app.add_flag("--json", json, "print one JSON object: nats_per_token, perplexity, tokens");
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

void score(const EvalFlags& flags, std::vector<std::vector<std::int32_t>> documents,
           Session& session) {
  const std::int64_t context = session.config.model.context;
  const std::int64_t longest = flags.max_length > 0 ? std::min(flags.max_length, context) : context;
  OSTRO_REQUIRE(flags.stride >= 0 && flags.stride <= longest, "--stride is ", flags.stride,
                "; it must be from 1 to the ", longest, " tokens of a window");
  engine::Engine engine(session.rank, session.config.model);
  const std::size_t count = documents.size();
  ProgressBar bar("eval", flags.json);
  const eval::Score score = eval::score(
      engine, {.documents = std::move(documents), .length = longest, .stride = flags.stride},
      [&](double done) { bar.show(done, [&] { return text(count, " documents"); }); });
  bar.clear();
  const std::int64_t tokens = score.tokens;
  OSTRO_REQUIRE(tokens > 0, flags.dataset, " has no token after the first of each document");
  const double mean = score.mean();
  if (flags.json)
    std::printf("%s\n", json({{"nats_per_token", mean},
                              {"perplexity", std::exp(mean)},
                              {"tokens", tokens},
                              {"documents", count}})
                            .dump()
                            .c_str());
  else
    std::printf("%zu documents, %lld tokens: %.5f nats a token, perplexity %.4f\n", count,
                static_cast<long long>(tokens), mean, std::exp(mean));
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
  constexpr std::int64_t kLogitRows = 512;  // enough for the head to run at its speed
  return run_on_ranks(flags.runtime, kLogitRows,
                      [&](Session& session) { score(flags, documents, session); });
}

}  // namespace ostro::cli
