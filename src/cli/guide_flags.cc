#include "cli/guide_flags.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/vocabulary.h"

namespace ostro::cli {

void GuideFlags::add(CLI::App& app) {
  const char* group = "Guided decoding";
  app.add_option("--guided_json", json, "JSON schema that each output fits")->group(group);
  app.add_option("--guided_regex", regex, "regular expression that each whole output matches")
      ->group(group);
  app.add_option("--guided_grammar", grammar,
                 "EBNF grammar whose rule `root` each output is a sentence of")
      ->group(group);
  app.add_option("--guided_choice", choice, "texts of which each output is one")->group(group);
}

namespace {

std::string json_list(const std::vector<std::string>& choices) {
  try {
    return nlohmann::json(choices).dump();
  } catch (const nlohmann::json::type_error&) {
    OSTRO_THROW(InvalidArgument, "--guided_choice has a choice that is not UTF-8");
  }
}

}  // namespace

std::optional<guide::Guide> GuideFlags::guide() const {
  std::optional<guide::Guide> guide;
  const char* first = nullptr;
  const auto take = [&](const char* flag, guide::Kind kind, const std::string& text) {
    OSTRO_REQUIRE(!guide, first, " and ", flag, " both say what the output must look like");
    first = flag;
    // Each output begins a text of its own: it is printed apart from its prompt.
    guide = {.kind = kind, .text = text, .at_start = true};
  };
  if (json) take("--guided_json", guide::Kind::json_schema, *json);
  if (regex) take("--guided_regex", guide::Kind::regex, *regex);
  if (grammar) take("--guided_grammar", guide::Kind::grammar, *grammar);
  if (!choice.empty()) take("--guided_choice", guide::Kind::choice, json_list(choice));
  return guide;
}

std::shared_ptr<const guide::Grammar> compile(const guide::Guide& guide,
                                              const txt::Tokenizer& tokenizer, std::int64_t vocab) {
  Vocabulary vocabulary = vocabulary_of(tokenizer, vocab);
  guide::Compiler compiler({std::move(vocabulary.bytes), std::move(vocabulary.at_start)}, vocab);
  return compiler.compile(guide);
}

}  // namespace ostro::cli
