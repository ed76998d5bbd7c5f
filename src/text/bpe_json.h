// tokenizer.json, Hugging Face's format, where its model is BPE: Mixtral's (byte fallback, spaces
// as U+2581) and the ByteLevel ones with a split pattern (GPT-2, LLaMA 3, Tekken).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace ostro::txt {

// `json` is the file's text, `name` stands for it in messages. Throws InvalidArgument if it is
// broken or contradicts `config`, and Unsupported, by name, for a part that would not be honoured.
// An added token of `config` that the file does not have is added; add_bos_token and add_eos_token
// override the file's template.
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json,
                                                const TokenizerConfig& config = {},
                                                const std::string& name = "tokenizer.json");

}  // namespace ostro::txt
