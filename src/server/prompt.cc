#include "server/prompt.h"

#include <map>

#include "base/error.h"
#include "base/json.h"
#include "server/api_error.h"
#include "server/fields.h"

namespace ostro::server {
namespace {

using nlohmann::json;

constexpr std::size_t kLongestCallId = 64;

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
std::string read_content(Fields& message, bool may_be_absent) {
  const json* content = message.any("content");
  const std::string param = message.path("content");
  if (!content && may_be_absent) return {};
  if (!content) missing(param);
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) refuse_value(param, "a string or a list of text parts", *content);
  std::string all;
  for (std::size_t i = 0; i < content->size(); ++i) {
    Fields part((*content)[i], text(param, '[', i, ']'));
    part.only("type", "text");
    const auto words = part.string("text");
    if (!words) missing(part.path("text"));
    part.refuse_others();
    all += *words;
  }
  return all;
}

txt::ChatToolCall read_call(const json& value, const std::string& path) {
  Fields call(value, path);
  const auto id = call.string("id");
  if (!id) missing(call.path("id"));
  if (id->empty() || id->size() > kLongestCallId)
    refuse_value(call.path("id"), text("a string of 1 to ", kLongestCallId, " bytes"), *id);
  call.only("type", "function");
  const json* inside = call.any("function");
  if (!inside) missing(call.path("function"));
  call.refuse_others();
  Fields function(*inside, call.path("function"));
  const auto name = function.string("name");
  if (!name) missing(function.path("name"));
  check_tool_name(*name, function.path("name"));
  const auto arguments = function.string("arguments");
  if (!arguments) missing(function.path("arguments"));
  function.refuse_others();
  const std::string param = function.path("arguments");
  try {
    const json parsed = parse_json(*arguments, text('"', param, '"'), kMostUntrustedKeys);
    if (!parsed.is_object()) refuse_value(param, "the text of a JSON object", *arguments);
  } catch (const InvalidArgument& e) {
    throw ApiError(400, e.what(), param, "invalid_value");
  }
  return {.id = *id, .name = *name, .arguments = *arguments};
}

std::vector<txt::ChatToolCall> read_calls(Fields& message) {
  const json* value = message.any("tool_calls");
  if (!value) return {};
  const std::string param = message.path("tool_calls");
  if (!value->is_array() || value->empty() || value->size() > kMostTools)
    refuse_value(param, text("a list of 1 to ", kMostTools, " calls"), *value);
  std::vector<txt::ChatToolCall> calls;
  for (std::size_t i = 0; i < value->size(); ++i)
    calls.push_back(read_call((*value)[i], text(param, '[', i, ']')));
  return calls;
}

// Of a conversation, in order.
class Messages {
 public:
  void read(const json& value) {
    Fields fields(value, text("messages[", all_.size(), ']'));
    const auto role = fields.string("role");
    if (!role) missing(fields.path("role"));
    txt::ChatMessage message{.role = *role, .content = {}};
    if (*role == "assistant") {
      message.tool_calls = read_calls(fields);
      for (std::size_t i = 0; i < message.tool_calls.size(); ++i) expect_answer(message, i, fields);
    }
    if (*role == "tool") read_answer(fields, message);
    message.content = read_content(fields, !message.tool_calls.empty());
    fields.refuse_others();
    all_.push_back(std::move(message));
  }
  const std::vector<txt::ChatMessage>& all() const { return all_; }

 private:
  void expect_answer(const txt::ChatMessage& message, std::size_t i, const Fields& fields) {
    const std::string& id = message.tool_calls[i].id;
    if (!calls_.emplace(id, false).second)
      refuse_id(fields.path(text("tool_calls[", i, "].id")), id, "is that of an earlier call too");
  }
  void read_answer(Fields& fields, txt::ChatMessage& message) {
    message.name = fields.string("name").value_or("");
    const auto id = fields.string("tool_call_id");
    const std::string param = fields.path("tool_call_id");
    if (!id) missing(param);
    const auto call = calls_.find(*id);
    if (call == calls_.end()) refuse_id(param, *id, "is of no call in the messages before");
    if (call->second) refuse_id(param, *id, "is of a call that has its result already");
    call->second = true;
    message.tool_call_id = *id;
  }
  [[noreturn]] static void refuse_id(const std::string& param, const std::string& id,
                                     const char* why) {
    throw ApiError(400, text('"', param, "\" is ", shown(id), ", which ", why), param,
                   "invalid_value");
  }

  std::vector<txt::ChatMessage> all_;
  std::map<std::string, bool> calls_;  // by id: has its result been given?
};

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

Prompt read_messages(const json& value, const std::optional<ToolUse>& tools,
                     const ServedModel& model) {
  if (!value.is_array() || value.empty())
    refuse_value("messages", "a list of at least one message", value);
  Messages messages;
  for (const json& message : value) messages.read(message);
  Prompt prompt;
  try {
    prompt.text = model.chat.render(messages.all(), true, tools ? tools->json : "");
  } catch (const InvalidArgument& e) {
    throw ApiError(400, e.what(), "messages", "invalid_value");
  }
  if (tools && tools->forced) prompt.text += txt::kToolCalls;
  prompt.ids =
      model.tokenizer.encode(prompt.text, {.add_special_tokens = false, .parse_special = true});
  if (prompt.ids.empty())
    throw ApiError(400, "these messages make an empty prompt", "messages", "invalid_value");
  return prompt;
}

}  // namespace ostro::server
