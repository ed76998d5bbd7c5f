#include "text/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/bpe_json_parts.h"

namespace ostro::txt {
namespace {

using nlohmann::json;

constexpr std::size_t kLargestConfigBytes = std::size_t{64} << 20;

// "<s>", or an AddedToken object with that content, or null.
std::optional<std::string> token_text(const JsonObject& config, const char* key) {
  if (!config.has(key)) return std::nullopt;
  const json& value = config.at(key);
  if (value.is_string()) return value.get<std::string>();
  return JsonObject(value, text(config.source(), ": \"", key, '"')).string("content");
}

std::optional<bool> flag(const JsonObject& config, const char* key) {
  if (!config.has(key)) return std::nullopt;
  return config.boolean_or(key, false);
}

std::vector<AddedToken> added_tokens(const json& by_id, std::string_view source) {
  std::vector<AddedToken> tokens;
  const JsonObject object(by_id, source);
  for (const auto& [key, value] : by_id.items()) {
    const std::string where = text(source, " of ", key);
    const JsonObject fields(value, where);
    std::int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool whole = error == std::errc() && end == key.data() + key.size();
    OSTRO_REQUIRE(whole && 0 <= id && id < kMostIds, source, " has the key \"", key,
                  "\"; it must be a token id below ", kMostIds);
    tokens.push_back(read_added_token(fields, id));
  }
  std::ranges::sort(tokens, {}, &AddedToken::id);
  return tokens;
}

// One template, or a list of {"name", "template"}.
std::map<std::string, std::string> chat_templates(const json& value, std::string_view source) {
  if (value.is_string()) return {{"default", value.get<std::string>()}};
  OSTRO_REQUIRE(value.is_array(), source, " is ", shown(value),
                "; it must be a text or a list of templates");
  std::map<std::string, std::string> templates;
  for (const json& item : value) {
    const JsonObject fields(item, source);
    templates[fields.string("name")] = fields.string("template");
  }
  return templates;
}

}  // namespace

TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory) {
  const auto file = directory / "tokenizer_config.json";
  if (!std::filesystem::exists(file)) return {};
  return parse_tokenizer_config(read_file(file, kLargestConfigBytes), file.string());
}

TokenizerConfig parse_tokenizer_config(std::string_view json_text, std::string_view name) {
  const json document = parse_json(json_text, name);
  const JsonObject object(document, name);
  TokenizerConfig config;
  config.bos_token = token_text(object, "bos_token");
  config.eos_token = token_text(object, "eos_token");
  config.add_bos_token = flag(object, "add_bos_token");
  config.add_eos_token = flag(object, "add_eos_token");
  if (object.has("added_tokens_decoder")) {
    config.added_tokens =
        added_tokens(object.at("added_tokens_decoder"), text(name, ": \"added_tokens_decoder\""));
  }
  if (object.has("chat_template")) {
    config.chat_templates =
        chat_templates(object.at("chat_template"), text(name, ": \"chat_template\""));
  }
  return config;
}

}  // namespace ostro::txt
