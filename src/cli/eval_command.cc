// ostro eval perplexity: how well an engine predicts texts.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/runtime.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace ostro::cli {
namespace {

using nlohmann::json;

struct EvalFlags {
  RuntimeFlags runtime;
  std::string tokenizer_dir;
  std::string dataset;
  std::int64_t max_length = 0;
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
    app.add_option("--max_documents", documents, "score the first so many lines; default: all");
    app.add_flag("--json", json, "print one JSON object: nats_per_token, perplexity, tokens");
  }
};

std::vector<std::int32_t> ids_of(const std::string& line, const std::string& where,
                                 const txt::Tokenizer* tokenizer) {
  const json parsed = parse_json(line, where);
  const JsonObject o(parsed, where);
  if (!o.has("input_ids")) {
    OSTRO_REQUIRE(o.has("text"), where, " has neither \"text\" nor \"input_ids\"");
    OSTRO_REQUIRE(tokenizer, where, " is text: give --tokenizer_dir");
    return tokenizer->encode(o.string("text"));
  }
  std::vector<std::int32_t> ids;
  const json& list = o.at("input_ids");
  OSTRO_REQUIRE(list.is_array(), where, ": \"input_ids\" is ", shown(list), "; it must be a list");
  for (const json& id : list) {
    OSTRO_REQUIRE(id.is_number_integer() && 0 <= id && id <= INT32_MAX, where,
                  ": \"input_ids\" holds ", shown(id), ", which is no token id");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::vector<std::vector<std::int32_t>> read_documents(const EvalFlags& flags,
                                                      const txt::Tokenizer* tokenizer) {
  std::vector<std::vector<std::int32_t>> documents;
  std::istringstream lines(read_file(flags.dataset));
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    if (flags.documents > 0 && std::int64_t(documents.size()) == flags.documents) break;
    documents.push_back(ids_of(line, text(flags.dataset, " line ", number), tokenizer));
    OSTRO_REQUIRE(!documents.back().empty(), flags.dataset, " line ", number, " has no token");
  }
  OSTRO_REQUIRE(!documents.empty(), flags.dataset, " has no document");
  return documents;
}

void score(const EvalFlags& flags, std::vector<std::vector<std::int32_t>> documents,
           Session& session) {
  const std::int64_t context = session.config.model.context;
  const std::int64_t longest = flags.max_length > 0 ? std::min(flags.max_length, context) : context;
  engine::Engine engine(session.rank, session.config.model);
  for (auto& ids : documents) {
    if (std::int64_t(ids.size()) > longest) ids.resize(std::size_t(longest));
    engine.submit({.prompt = std::move(ids),
                   .max_new_tokens = 0,
                   .sampling = {},
                   .end_ids = {},
                   .logits = false,
                   .prompt_logits = false,
                   .prompt_log_probs = true});
  }
  double nats = 0;
  std::int64_t tokens = 0;
  while (!engine.idle())
    for (const engine::Event& event : engine.step())
      for (float log_prob : event.prompt_log_probs) {
        nats -= log_prob;
        ++tokens;
      }
  OSTRO_REQUIRE(tokens > 0, flags.dataset, " has no token after the first of each document");
  const double mean = nats / double(tokens);
  if (flags.json)
    std::printf("%s\n", json({{"nats_per_token", mean},
                              {"perplexity", std::exp(mean)},
                              {"tokens", tokens},
                              {"documents", documents.size()}})
                            .dump()
                            .c_str());
  else
    std::printf("%zu documents, %lld tokens: %.5f nats a token, perplexity %.4f\n",
                documents.size(), static_cast<long long>(tokens), mean, std::exp(mean));
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
