#include "server/completion_json.h"

#include <algorithm>
#include <cmath>
#include <ctime>

namespace ostro::server {
namespace {

using nlohmann::ordered_json;

// JSON has no infinity; OpenAI's lowest value stands for a token that cannot come.
double sent(float log_prob) { return std::isfinite(log_prob) ? log_prob : -9999.0; }

std::int64_t characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

ordered_json usage_json(const Usage& u) {
  return {{"prompt_tokens", u.prompt_tokens},
          {"completion_tokens", u.completion_tokens},
          {"total_tokens", u.prompt_tokens + u.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", u.cached_tokens}}}};
}

ordered_json text_or_null(std::string_view text) {
  if (text.empty()) return nullptr;
  return text;
}

// The first part of a call has what the later ones go on from.
ordered_json delta_json(const ToolCallDelta& call) {
  if (call.name.empty())
    return {{"index", call.index}, {"function", {{"arguments", call.arguments}}}};
  return {{"index", call.index},
          {"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

ordered_json message_json(const Choice::Piece& said) {
  ordered_json message = {{"role", "assistant"}, {"content", said.text}};
  if (said.calls.empty()) return message;
  if (said.text.empty()) message["content"] = nullptr;
  ordered_json calls = ordered_json::array();
  for (const ToolCallDelta& part : said.calls) {
    if (part.index == calls.size())
      calls.push_back({{"id", part.id},
                       {"type", "function"},
                       {"function", {{"name", part.name}, {"arguments", ""}}}});
    auto& arguments = calls[part.index]["function"]["arguments"].get_ref<std::string&>();
    arguments += part.arguments;
  }
  message["tool_calls"] = std::move(calls);
  return message;
}

}  // namespace

std::string sse_event(std::string_view json) {
  std::string event = "data: ";
  event += json;
  event += "\n\n";
  return event;
}

std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

CompletionJson::CompletionJson(bool chat, std::string request_id, std::string model,
                               const txt::Tokenizer& tokenizer, bool log_probs)
    : chat_(chat),
      id_((chat ? "chatcmpl-" : "cmpl-") + std::move(request_id)),
      created_(std::time(nullptr)),
      model_(std::move(model)),
      tokenizer_(tokenizer),
      log_probs_(log_probs) {}

ordered_json CompletionJson::head(bool chunk) const {
  return {{"id", id_},
          {"object", !chat_  ? "text_completion"
                     : chunk ? "chat.completion.chunk"
                             : "chat.completion"},
          {"created", created_},
          {"model", model_}};
}

std::string CompletionJson::chunk(std::size_t index, const Choice::Piece& piece,
                                  std::string_view finish, bool with_usage_field) {
  ordered_json choice = {{"index", index}};
  if (!chat_) {
    choice["text"] = piece.text;
  } else {
    choice["delta"] = ordered_json::object();
    if (!piece.text.empty()) choice["delta"]["content"] = piece.text;
    for (const ToolCallDelta& call : piece.calls)
      choice["delta"]["tool_calls"].push_back(delta_json(call));
  }
  choice["logprobs"] = log_probs(index, piece);
  choice["finish_reason"] = text_or_null(finish);
  ordered_json body = head(true);
  body["choices"] = ordered_json::array({std::move(choice)});
  if (with_usage_field) body["usage"] = nullptr;
  return dump(body);
}

std::string CompletionJson::role_chunk(std::size_t index, bool with_usage_field) {
  ordered_json body = head(true);
  body["choices"] = ordered_json::array({{{"index", index},
                                          {"delta", {{"role", "assistant"}, {"content", ""}}},
                                          {"logprobs", nullptr},
                                          {"finish_reason", nullptr}}});
  if (with_usage_field) body["usage"] = nullptr;
  return dump(body);
}

std::string CompletionJson::usage_chunk(const Usage& usage) {
  ordered_json body = head(true);
  body["choices"] = ordered_json::array();
  body["usage"] = usage_json(usage);
  return dump(body);
}

std::string CompletionJson::whole(const std::vector<WholeChoice>& choices, const Usage& usage) {
  ordered_json list = ordered_json::array();
  for (std::size_t i = 0; i < choices.size(); ++i) {
    ordered_json choice = {{"index", i}};
    if (chat_)
      choice["message"] = message_json(choices[i].piece);
    else
      choice["text"] = choices[i].piece.text;
    choice["logprobs"] = log_probs(i, choices[i].piece);
    choice["finish_reason"] = text_or_null(choices[i].finish);
    list.push_back(std::move(choice));
  }
  ordered_json body = head(false);
  body["choices"] = std::move(list);
  body["usage"] = usage_json(usage);
  return dump(body);
}

ordered_json CompletionJson::log_probs(std::size_t index, const Choice::Piece& piece) {
  if (!log_probs_) return nullptr;
  if (chat_) return chat_log_probs(piece);
  if (index >= offsets_.size()) offsets_.resize(index + 1, 0);
  ordered_json tokens = ordered_json::array(), values = tokens, tops = tokens, offsets = tokens;
  for (const ScoredToken& t : piece.tokens) {
    const std::string_view word = tokenizer_.piece(t.id);
    tokens.push_back(word);
    values.push_back(t.log_prob ? ordered_json(sent(*t.log_prob)) : ordered_json(nullptr));
    offsets.push_back(offsets_[index]);
    offsets_[index] += characters(word);
    ordered_json top = nullptr;
    for (const TokenLogProb& a : t.alternatives)
      top[std::string(tokenizer_.piece(a.token))] = sent(a.log_prob);
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

ordered_json CompletionJson::chat_log_probs(const Choice::Piece& piece) const {
  ordered_json content = ordered_json::array();
  for (const ScoredToken& t : piece.tokens) {
    ordered_json entry = chat_token(t.id, t.log_prob);
    entry["top_logprobs"] = ordered_json::array();
    for (const TokenLogProb& a : t.alternatives)
      entry["top_logprobs"].push_back(chat_token(a.token, a.log_prob));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

ordered_json CompletionJson::chat_token(TokenId id, std::optional<float> log_prob) const {
  const std::string_view word = tokenizer_.piece(id);
  ordered_json bytes = ordered_json::array();
  for (const char c : word) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", word}, {"logprob", sent(log_prob.value_or(0))}, {"bytes", std::move(bytes)}};
}

}  // namespace ostro::server
