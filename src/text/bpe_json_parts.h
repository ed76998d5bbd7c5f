// The small parts of tokenizer.json, read one by one. Each reader throws InvalidArgument for a
// value of the wrong kind and Unsupported, by name, for what would not be honoured; `where` is the
// file's name for messages. A part that is null or missing is an empty one, except the decoder.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/token_table.h"

namespace ostro {
class JsonObject;
}

namespace ostro::txt {

// What the decoder does to the bytes of each token, and then to the text.
struct JsonDecoder {
  std::vector<Replace> replacements;
  bool byte_fallback = false;  // "<0x0A>" is the byte 10
  bool byte_level = false;
  DecodeRule rule;

  std::string bytes_of(std::string_view token) const;
};

// The tokens that add_special_tokens puts around one text.
struct JsonTemplate {
  std::vector<std::int32_t> before, after;
};

// One of added_tokens, or of a tokenizer_config.json's added_tokens_decoder, whose key is the id.
AddedToken read_added_token(const JsonObject&, std::int32_t id);

BpeSettings read_model(const nlohmann::json& document, std::string_view where);
std::vector<AddedToken> read_added_tokens(const nlohmann::json& document, std::string_view where);
Normalizer read_normalizer(const nlohmann::json& document, std::string_view where);
PreTokenizer read_pre_tokenizer(const nlohmann::json& document, std::string_view where);
JsonDecoder read_decoder(const nlohmann::json& document, std::string_view where);
JsonTemplate read_post_processor(const nlohmann::json& document, std::string_view where);

}  // namespace ostro::txt
