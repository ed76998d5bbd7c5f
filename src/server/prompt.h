// The prompts of a request: texts, token ids or a conversation.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "server/api_request.h"

namespace ostro::server {

inline constexpr std::size_t kMostPrompts = 256;

// OpenAI's four forms: a text, texts, ids, lists of ids.
std::vector<Prompt> read_prompts(const nlohmann::json& value, const ServedModel&);

// A list of ids of the model's vocabulary; `param` names it in messages.
std::vector<TokenId> read_ids(const nlohmann::json& value, const std::string& param,
                              const ServedModel&);

// A conversation through the model's chat template, ready for the assistant's turn; where calls of
// tools are forced, that has begun.
Prompt read_messages(const nlohmann::json& value, const std::optional<ToolUse>&,
                     const ServedModel&);

}  // namespace ostro::server
