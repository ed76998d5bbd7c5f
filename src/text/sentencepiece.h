// tokenizer.model through libsentencepiece.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace ostro::txt {

// `model` is the file's content, `name` stands for it in messages. Throws InvalidArgument if it is
// not a SentencePiece model or if `config` contradicts it. bos is put before every text, and eos
// nowhere, unless `config` says otherwise.
std::unique_ptr<Tokenizer> parse_sentencepiece(std::string_view model,
                                               const TokenizerConfig& config = {},
                                               const std::string& name = "tokenizer.model");

}  // namespace ostro::txt
