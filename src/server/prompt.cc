#include "server/prompt.h"

#include "base/error.h"
#include "server/api_error.h"
#include "server/fields.h"

namespace ostro::server {
namespace {

using nlohmann::json;

Prompt text_prompt(std::string text, const ServedModel& model) {
  Prompt prompt{.ids = model.tokenizer.encode(text), .text = std::move(text)};
  if (prompt.ids.empty()) throw ApiError(400, "the prompt is empty", "prompt", "invalid_value");
  return prompt;
}

Prompt id_prompt(const json& ids, const std::string& param, const ServedModel& model) {
  Prompt prompt{.ids = read_ids(ids, param, model), .text = {}};
  if (prompt.ids.empty()) throw ApiError(400, "the prompt is empty", param, "invalid_value");
  prompt.text = model.tokenizer.decode(prompt.ids);
  return prompt;
}

// A text, or OpenAI's list of parts, of which texts alone have a meaning here.
std::string read_content(Fields& message) {
  const json* content = message.any("content");
  const std::string param = message.path("content");
  if (!content) throw ApiError(400, text('"', param, "\" is missing"), param, "missing_field");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) refuse_value(param, "a string or a list of text parts", *content);
  std::string all;
  for (std::size_t i = 0; i < content->size(); ++i) {
    Fields part((*content)[i], text(param, '[', i, ']'));
    part.only("type", "text");
    const auto words = part.string("text");
    if (!words)
      throw ApiError(400, text('"', part.path("text"), "\" is missing"), part.path("text"),
                     "missing_field");
    part.refuse_others();
    all += *words;
  }
  return all;
}

}  // namespace

std::vector<TokenId> read_ids(const json& value, const std::string& param,
                              const ServedModel& model) {
  if (!value.is_array()) refuse_value(param, "a list of token ids", value);
  std::vector<TokenId> ids;
  ids.reserve(value.size());
  for (std::size_t i = 0; i < value.size(); ++i) {
    const json& id = value[i];
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t(model.info.vocab))
      refuse_value(text(param, '[', i, ']'), text("a token id from 0 to ", model.info.vocab - 1),
                   id);
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

std::vector<Prompt> read_prompts(const json& value, const ServedModel& model) {
  const std::string param = "prompt";
  if (value.is_string()) return {text_prompt(value.get<std::string>(), model)};
  if (!value.is_array() || value.empty())
    refuse_value(param, "a string, a list of strings, a list of token ids or a list of such lists",
                 value);
  if (value[0].is_number()) return {id_prompt(value, param, model)};
  if (value.size() > kMostPrompts)
    throw ApiError(
        400, text("a request has at most ", kMostPrompts, " prompts, here are ", value.size()),
        param, "invalid_value");
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (value[i].type() != value[0].type())
      refuse_value(text(param, '[', i, ']'), "of the same type as prompt[0]", value[i]);
    prompts.push_back(value[i].is_string() ? text_prompt(value[i].get<std::string>(), model)
                                           : id_prompt(value[i], text(param, '[', i, ']'), model));
  }
  return prompts;
}

Prompt read_messages(const json& value, const ServedModel& model) {
  if (!value.is_array() || value.empty())
    refuse_value("messages", "a list of at least one message", value);
  std::vector<txt::ChatMessage> messages;
  for (std::size_t i = 0; i < value.size(); ++i) {
    Fields message(value[i], text("messages[", i, ']'));
    const auto role = message.string("role");
    if (!role)
      throw ApiError(400, text('"', message.path("role"), "\" is missing"), message.path("role"),
                     "missing_field");
    messages.push_back({.role = *role, .content = read_content(message)});
    message.refuse_others();
  }
  Prompt prompt;
  try {
    prompt.text = model.chat.render(messages, true);
  } catch (const InvalidArgument& e) {
    throw ApiError(400, e.what(), "messages", "invalid_value");
  }
  prompt.ids =
      model.tokenizer.encode(prompt.text, {.add_special_tokens = false, .parse_special = true});
  if (prompt.ids.empty())
    throw ApiError(400, "these messages make an empty prompt", "messages", "invalid_value");
  return prompt;
}

}  // namespace ostro::server
