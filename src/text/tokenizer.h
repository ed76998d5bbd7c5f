// Text to token ids and back, with the tokenizer that a checkpoint brings.
//
//   const auto tokenizer = txt::load_tokenizer("models/mixtral");
//   const auto ids = tokenizer->encode("I love french quiche");  // 1, 315, 2016, ...
//   tokenizer->decode(ids);                                      // "I love french quiche"
//
// Two formats: tokenizer.model (SentencePiece) and tokenizer.json (Hugging Face, BPE). Text is
// UTF-8; what is not is replaced by U+FFFD before it is encoded, as by Python's errors="replace".
// A Tokenizer does not change: any number of threads may use one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/token_table.h"

namespace ostro::txt {

struct EncodeOptions {
  bool add_special_tokens = true;  // bos (and eos) where the model was trained with them
  // Whether "<s>", "[INST]" and the like in the text are those tokens, as in a rendered chat
  // template, or letters, as in what a user wrote.
  bool parse_special = false;
};

class Tokenizer {
 public:
  explicit Tokenizer(TokenTable table) : table_(std::move(table)) {}
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // At most 1 GiB of text.
  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  // UTF-8, whatever the ids: bytes that do not make a character become U+FFFD, and an id that is no
  // token (a model's padding) stands for nothing. The space that encode() put before the first word
  // is gone. Bytes of byte-fallback tokens are judged one by one (SentencePiece's rule; Hugging
  // Face discards the good characters of a run with a bad byte in it too).
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const;

  // The bytes that a token stands for: " the" with its space, part of a character for a byte token,
  // its own text for a special token. Valid as long as this object is.
  std::string_view piece(std::int32_t id) const { return table_.bytes(id); }

  bool is_special(std::int32_t id) const { return table_.is_special(id); }
  // The id of a special or added token by its text: special_id("[INST]").
  std::optional<std::int32_t> special_id(std::string_view text) const { return table_.named(text); }

  std::optional<std::int32_t> bos_id() const { return table_.bos; }
  std::optional<std::int32_t> eos_id() const { return table_.eos; }
  // One more than the largest id.
  std::int32_t vocab_size() const { return table_.size(); }
  const DecodeRule& decode_rule() const { return table_.decode; }

 private:
  // Appends the ids of `text`, which is UTF-8, without bos and eos.
  virtual void encode_text(std::string_view text, bool parse_special,
                           std::vector<std::int32_t>& ids) const = 0;

  TokenTable table_;
};

// Reads a directory's tokenizer.json or, if it has none, its tokenizer.model; with both, the first
// wins, as in transformers: on plain text they agree. Beside it tokenizer_config.json is read if
// there is one: bos_token, eos_token, add_bos_token, add_eos_token and added_tokens_decoder.
//
// bos and eos: what tokenizer_config.json says, else tokenizer.model's own, else the first token of
// tokenizer.json's template and "</s>", "<|end_of_text|>" or "<|endoftext|>", if special there.
//
// `path` may also be a file, which is then judged by its content. Throws InvalidArgument for a
// directory with neither file and for a broken file, Unsupported for a part of tokenizer.json that
// would not be honoured. In tokenizer.model each stretch between special tokens gets the space
// before it that the whole text gets (transformers' "legacy": true).
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

}  // namespace ostro::txt
