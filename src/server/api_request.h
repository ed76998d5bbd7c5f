// The bodies of OpenAI's completion requests, checked and turned into token ids and numbers.
//
// Every field is honoured or refused by name (ApiError 400); docs/serving.md lists them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ostro/executor.h"
#include "server/tools.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace ostro::server {

// The one model that a server offers. Keeps references.
struct ServedModel {
  std::string name;
  const ModelInfo& info;
  const txt::Tokenizer& tokenizer;
  const txt::ChatTemplate& chat;
  std::int64_t max_tokens;  // of prompt and output: the context, or the KV cache if that is smaller
};

struct Prompt {
  std::vector<TokenId> ids;
  std::string text;  // as it was given, for `echo`
};

struct ApiRequest {
  bool chat = false;
  std::vector<Prompt> prompts;
  std::vector<std::string> stops;
  bool stream = false;
  bool include_usage = false;
  bool echo = false;
  std::optional<std::int32_t> log_probs;  // alternatives at each place
  Request base;                           // for the executor, without the prompt
  std::optional<ToolUse> tools;           // of a chat
  bool open_length = false;               // the answer may be as long as the model can
};

ApiRequest parse_completion(std::string_view body, const ServedModel&);
ApiRequest parse_chat(std::string_view body, const ServedModel&);

// What `prompt` becomes for the executor.
Request engine_request(const ApiRequest&, const Prompt&, const ServedModel&);

// {"prompt"} or {"messages"} of /tokenize, {"tokens"} of /detokenize.
std::vector<TokenId> parse_tokenize(std::string_view body, const ServedModel&);
std::vector<TokenId> parse_detokenize(std::string_view body, const ServedModel&);

}  // namespace ostro::server
