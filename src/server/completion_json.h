// The JSON of OpenAI's answers: whole ones, and the chunks of a stream.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "server/choice.h"

namespace ostro::server {

// "data: ...\n\n". The JSON text has no line breaks in it.
std::string sse_event(std::string_view json);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

// JSON as it is sent. What is not UTF-8 becomes U+FFFD: never an exception.
std::string dump(const nlohmann::ordered_json&);

struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  std::int64_t cached_tokens = 0;  // of the prompt: found in the KV cache
};

// What all parts of one answer have in common.
class CompletionJson {
 public:
  CompletionJson(bool chat, std::string request_id, std::string model,
                 const txt::Tokenizer& tokenizer, bool log_probs);

  // A chunk of choice `index`; `finish` is empty before its last.
  std::string chunk(std::size_t index, const Choice::Piece&, std::string_view finish,
                    bool with_usage_field);
  // The chunk that opens a choice of a chat, with its role.
  std::string role_chunk(std::size_t index, bool with_usage_field);
  std::string usage_chunk(const Usage&);

  struct WholeChoice {
    Choice::Piece piece;
    std::string_view finish;
  };
  std::string whole(const std::vector<WholeChoice>&, const Usage&);

 private:
  nlohmann::ordered_json head(bool chunk) const;
  nlohmann::ordered_json log_probs(std::size_t index, const Choice::Piece&);
  nlohmann::ordered_json chat_log_probs(const Choice::Piece&) const;
  nlohmann::ordered_json chat_token(TokenId, std::optional<float> log_prob) const;

  bool chat_;
  std::string id_;
  std::int64_t created_;
  std::string model_;
  const txt::Tokenizer& tokenizer_;
  bool log_probs_;
  std::vector<std::int64_t> offsets_;  // characters of each choice's tokens so far: "text_offset"
};

}  // namespace ostro::server
