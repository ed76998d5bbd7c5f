#include "text/bpe_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/bpe_json_file.h"
#include "text/bpe_json_parts.h"
#include "text/pre_tokenizer.h"

namespace ostro::txt {
namespace {

using nlohmann::json;

class BpeJsonTokenizer final : public Tokenizer {
 public:
  struct Parts {
    std::vector<AddedToken> added;
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
  };

  BpeJsonTokenizer(TokenTable table, BpeModel model, Parts parts)
      : Tokenizer(std::move(table)),
        normalizer_(std::move(parts.normalizer)),
        pre_tokenizer_(std::move(parts.pre_tokenizer)),
        model_(std::move(model)),
        raw_added_(of(parts.added, false)),
        normalized_added_(of(parts.added, true),
                          [this](std::string_view content) { return normalizer_(content); }) {}

 private:
  // Special tokens first: where two are spelled alike, the first counts.
  static std::vector<AddedToken> of(const std::vector<AddedToken>& all, bool normalized) {
    std::vector<AddedToken> some;
    std::ranges::copy_if(all, std::back_inserter(some),
                         [&](const AddedToken& t) { return t.normalized == normalized; });
    std::ranges::stable_partition(some, [](const AddedToken& t) { return t.special; });
    return some;
  }

  void encode_text(std::string_view text, bool parse_special,
                   std::vector<std::int32_t>& ids) const override {
    BpeModel::Workspace workspace;
    const PreTokenizer::Emit emit = [&](std::string_view word) {
      model_.encode(word, workspace, ids);
    };
    for (const AddedTokens::Part& raw : raw_added_.split(text, parse_special)) {
      if (raw.id >= 0) {
        ids.push_back(raw.id);
        continue;
      }
      std::string_view stretch = text.substr(raw.begin, raw.end - raw.begin);
      std::string normalized;
      if (!normalizer_.steps.empty()) stretch = normalized = normalizer_(stretch);
      for (const AddedTokens::Part& part : normalized_added_.split(stretch, parse_special)) {
        if (part.id >= 0) {
          ids.push_back(part.id);
        } else {
          pre_tokenizer_.run(stretch.substr(part.begin, part.end - part.begin),
                             raw.begin == 0 && part.begin == 0, emit);
        }
      }
    }
  }

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  AddedTokens raw_added_, normalized_added_;
};

// The file's added tokens, and those of the config that it does not have.
std::vector<AddedToken> all_added_tokens(std::vector<AddedToken> tokens,
                                         const TokenizerConfig& config) {
  std::set<std::string> contents;
  for (const AddedToken& token : tokens) contents.insert(token.content);
  for (const AddedToken& token : config.added_tokens) {
    if (contents.insert(token.content).second) tokens.push_back(token);
  }
  std::erase_if(tokens, [](const AddedToken& token) { return token.content.empty(); });
  return tokens;
}

// The first of `names` that is a special token.
std::optional<std::int32_t> first_special(const TokenTable& table,
                                          std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto id = table.named(name);
    if (id && table.is_special(*id)) return id;
  }
  return std::nullopt;
}

std::int32_t configured_id(const TokenTable& table, const BpeModel& model,
                           const std::string& content, const char* key, const std::string& name) {
  std::optional<std::int32_t> id = table.named(content);
  if (!id) id = model.id_of(content);
  OSTRO_REQUIRE(id, "tokenizer_config.json has the ", key, " \"", content, "\", which ", name,
                " does not have");
  return *id;
}

void set_ends(TokenTable& table, const BpeModel& model, const TokenizerConfig& config,
              const JsonTemplate& pattern, const std::string& name) {
  table.before = pattern.before;
  table.after = pattern.after;
  if (config.bos_token) {
    table.bos = configured_id(table, model, *config.bos_token, "bos_token", name);
  } else if (!pattern.before.empty()) {
    table.bos = pattern.before.front();
  } else {
    table.bos = first_special(table, {"<s>", "<|begin_of_text|>"});
  }
  if (config.eos_token) {
    table.eos = configured_id(table, model, *config.eos_token, "eos_token", name);
  } else {
    table.eos = first_special(table, {"</s>", "<|end_of_text|>", "<|endoftext|>"});
  }
  const auto enforce = [&](std::optional<bool> wanted, std::optional<std::int32_t> id,
                           std::vector<std::int32_t>& around) {
    if (!wanted || !id) return;
    const bool there = std::ranges::find(around, *id) != around.end();
    if (*wanted && !there) around.push_back(*id);
    if (!*wanted) std::erase(around, *id);
  };
  enforce(config.add_bos_token, table.bos, table.before);
  enforce(config.add_eos_token, table.eos, table.after);
}

TokenTable table_of(const BpeJsonFile& file, const std::vector<AddedToken>& added,
                    const JsonDecoder& decoder, const JsonTemplate& pattern,
                    const std::string& name) {
  std::int32_t size = 0;
  for (std::int32_t id : file.ids) size = std::max(size, id + 1);
  for (const AddedToken& token : added) size = std::max(size, token.id + 1);
  std::vector<const AddedToken*> added_by_id(size);
  for (const AddedToken& token : added) {
    const AddedToken*& slot = added_by_id[token.id];
    OSTRO_REQUIRE(!slot || slot->content == token.content, name, ": id ", token.id,
                  " is added as \"", slot->content, "\" and as \"", token.content, '"');
    slot = &token;
  }

  TokenTable table;
  table.resize(size, 8 * static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < file.ids.size(); ++i) {
    const std::int32_t id = file.ids[i];
    const std::string_view token = file.tokens[i];
    const AddedToken* same = added_by_id[id];
    OSTRO_REQUIRE(!same || same->content == token, name, ": id ", id, " is \"", token,
                  "\" in the vocabulary and \"", same->content, "\" in the added tokens");
    table.append(id, decoder.bytes_of(token), same && same->special);
  }
  for (const AddedToken& token : added) {
    const std::uint32_t number = file.tokens.find(token.content);
    OSTRO_REQUIRE(number == StringIndex::kAbsent || file.ids[number] == token.id, name,
                  ": the added token \"", token.content, "\" has the id ", token.id,
                  " but the vocabulary gives it ", file.ids[number]);
    if (!table.contains(token.id)) {
      table.append(token.id, decoder.bytes_of(token.content), token.special);
    }
    table.name(token.id, token.content);
  }
  for (const auto* ids : {&pattern.before, &pattern.after}) {
    for (std::int32_t id : *ids) {
      OSTRO_REQUIRE(table.contains(id), name, ": the template puts id ", id,
                    " around a text, which is no token");
    }
  }
  table.decode = decoder.rule;
  return table;
}

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json_text,
                                                const TokenizerConfig& config,
                                                const std::string& name) {
  BpeJsonFile file;
  const json document = read_bpe_json(json_text, name, file);
  OSTRO_REQUIRE(document.is_object(), name, " must be a JSON object, it is ", shown(document));
  BpeSettings settings = read_model(document, name);
  OSTRO_REQUIRE(file.tokens.size() > 0, name, ": the vocabulary is empty");
  const JsonDecoder decoder = read_decoder(document, name);
  const JsonTemplate pattern = read_post_processor(document, name);
  BpeJsonTokenizer::Parts parts{
      .added = all_added_tokens(read_added_tokens(document, name), config),
      .normalizer = read_normalizer(document, name),
      .pre_tokenizer = read_pre_tokenizer(document, name)};
  TokenTable table = table_of(file, parts.added, decoder, pattern, name);
  BpeModel model(std::move(file.tokens), std::move(file.ids), file.merges(), std::move(settings));
  set_ends(table, model, config, pattern, name);
  return std::make_unique<BpeJsonTokenizer>(std::move(table), std::move(model), std::move(parts));
}

}  // namespace ostro::txt
