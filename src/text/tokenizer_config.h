// What a checkpoint's tokenizer_config.json says about its tokenizer.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "text/token_table.h"

namespace ostro::txt {

struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token;
  std::optional<bool> add_bos_token, add_eos_token;
  std::vector<AddedToken> added_tokens;               // by ascending id
  std::map<std::string, std::string> chat_templates;  // by name; "default" if it has none
};

// Empty if the directory has no such file. Throws InvalidArgument naming the file and the key.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

// The same from the file's text; `name` is for messages.
TokenizerConfig parse_tokenizer_config(std::string_view json, std::string_view name);

}  // namespace ostro::txt
