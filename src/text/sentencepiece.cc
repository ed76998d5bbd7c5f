#include "text/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"
#include "text/added_tokens.h"
#include "text/word_memory.h"

namespace ostro::txt {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr std::string_view kWordStart = "\xE2\x96\x81";  // U+2581, a space inside a piece

// "<0x0A>" stands for the byte 10.
char byte_of(const std::string& piece) {
  unsigned value = 0;
  std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  return static_cast<char>(value);
}

std::string with_spaces(std::string_view piece) {
  std::string out;
  for (std::size_t at; (at = piece.find(kWordStart)) != std::string_view::npos;) {
    out += piece.substr(0, at);
    out += ' ';
    piece.remove_prefix(at + kWordStart.size());
  }
  return out += piece;
}

std::string bytes_of(const SentencePieceProcessor& model, int id) {
  const std::string& piece = model.IdToPiece(id);
  if (model.IsByte(id)) return std::string(1, byte_of(piece));
  if (model.IsControl(id) || model.IsUnknown(id)) return piece;
  return with_spaces(piece);
}

// Whether the model was trained with a space before each text. The library does not say: ask it.
bool has_dummy_prefix(const SentencePieceProcessor& model) {
  std::vector<std::string> pieces;
  return model.Encode("a", &pieces).ok() && !pieces.empty() && pieces[0].starts_with(kWordStart);
}

// Whether texts reach the model as they are: no NFKC, no space removed, no character dropped.
bool is_verbatim(const SentencePieceProcessor& model) {
  constexpr std::string_view kProbe = "  \uFF21 \u00BD\t\uFB01  \u0301x\n\x01 \u00A0 ";
  std::vector<int> ids;
  std::string back;
  return model.Encode({kProbe.data(), kProbe.size()}, &ids).ok() && model.Decode(ids, &back).ok() &&
         back == kProbe;
}

// Cuts a text into words that the model encodes one by one as it encodes the whole. The library
// takes its time for long texts (0.3 MB/s at 1 MB), and words recur.
//
// A cut before a space is sound if no piece has a space there after the byte before it: then no
// piece reaches over the cut. The word after the cut does without that space, because the library
// puts one before whatever it encodes. Texts that it would rewrite first are not cut at all.
class WordCuts {
 public:
  explicit WordCuts(const SentencePieceProcessor& model) {
    const int space = model.PieceToId({kWordStart.data(), kWordStart.size()});
    if (!has_dummy_prefix(model) || !is_verbatim(model) || model.IsUnknown(space)) return;
    sound_after_.fill(true);
    const auto forbid = [&](std::string_view piece) {
      for (std::size_t at = piece.find(' ', 1); at < piece.size(); at = piece.find(' ', at + 1)) {
        sound_after_[static_cast<unsigned char>(piece[at - 1])] = false;
      }
    };
    for (int id = 0; id < model.GetPieceSize(); ++id) {
      const std::string& piece = model.IdToPiece(id);
      if (piece.find(kWordStart, 1) != piece.npos || piece.find(' ', 1) != piece.npos) {
        forbid(with_spaces(piece));
      }
    }
    // U+2581 in a text is a space to the model.
    if (!sound_after_[' ']) sound_after_[static_cast<unsigned char>(kWordStart.back())] = false;
  }

  // Where the word that begins at `from` < text.size() ends: before a space that something follows,
  // or with the text.
  std::size_t end(std::string_view text, std::size_t from) const {
    for (std::size_t at = text.find(' ', from + 1); at < text.size() - 1;
         at = text.find(' ', at + 1)) {
      if (sound_after_[static_cast<unsigned char>(text[at - 1])]) return at;
    }
    return text.size();
  }

 private:
  std::array<bool, 256> sound_after_{};
};

// The control pieces, the unknown piece, and the tokens that the config adds behind the model's.
std::vector<AddedToken> added_tokens(const SentencePieceProcessor& model,
                                     const TokenizerConfig& config, const std::string& name) {
  std::vector<AddedToken> tokens;
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    if (!model.IsControl(id) && !model.IsUnknown(id)) continue;
    tokens.push_back({.id = id, .content = model.IdToPiece(id), .special = true});
  }
  std::int32_t next = model.GetPieceSize();
  for (const AddedToken& token : config.added_tokens) {
    OSTRO_REQUIRE(token.id <= next, name, " ends at id ", next - 1,
                  " but tokenizer_config.json adds \"", token.content, "\" as ", token.id);
    if (token.id == next) {
      ++next;
      tokens.push_back(token);
      continue;
    }
    const bool same = model.IdToPiece(token.id) == token.content;
    OSTRO_REQUIRE(same, "id ", token.id, " is \"", model.IdToPiece(token.id), "\" in ", name,
                  " and \"", token.content, "\" in tokenizer_config.json");
    const auto known = std::ranges::find(tokens, token.id, &AddedToken::id);
    if (known == tokens.end()) {
      tokens.push_back(token);
    } else {
      *known = token;
    }
  }
  return tokens;
}

std::optional<std::int32_t> special_id(const TokenTable& table,
                                       const std::optional<std::string>& configured, int own,
                                       const std::string& name) {
  if (configured) {
    const auto id = table.named(*configured);
    OSTRO_REQUIRE(id, "tokenizer_config.json names \"", *configured, "\", which ", name,
                  " does not have as a special token");
    return id;
  }
  return own < 0 ? std::nullopt : std::optional(own);
}

TokenTable table_of(const SentencePieceProcessor& model, const std::vector<AddedToken>& added,
                    const TokenizerConfig& config, const std::string& name) {
  const int pieces = model.GetPieceSize();
  std::int32_t size = pieces;
  for (const AddedToken& token : added) size = std::max(size, token.id + 1);
  std::vector<const AddedToken*> by_id(size);
  for (const AddedToken& token : added) by_id[token.id] = &token;

  TokenTable table;
  table.resize(size, 8 * static_cast<std::size_t>(size));
  for (std::int32_t id = 0; id < size; ++id) {
    const AddedToken* token = by_id[id];
    table.append(id, token ? token->content : bytes_of(model, id), token && token->special);
    if (token) table.name(id, token->content);
  }
  table.bos = special_id(table, config.bos_token, model.bos_id(), name);
  table.eos = special_id(table, config.eos_token, model.eos_id(), name);
  if (config.add_bos_token.value_or(true) && table.bos) table.before = {*table.bos};
  if (config.add_eos_token.value_or(false) && table.eos) table.after = {*table.eos};
  table.decode.invalid_utf8 = InvalidUtf8::per_byte;
  table.decode.leading_space =
      has_dummy_prefix(model) ? LeadingSpace::drop_one : LeadingSpace::keep;
  return table;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceProcessor> model, TokenTable table,
                         std::vector<AddedToken> added)
      : Tokenizer(std::move(table)),
        model_(std::move(model)),
        cuts_(*model_),
        added_(std::move(added)) {}

 private:
  void encode_text(std::string_view text, bool parse_special,
                   std::vector<std::int32_t>& ids) const override {
    WordMemory words;
    for (const AddedTokens::Part& part : added_.split(text, parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_stretch(text.substr(part.begin, part.end - part.begin), words, ids);
      }
    }
  }

  void encode_stretch(std::string_view text, WordMemory& words,
                      std::vector<std::int32_t>& ids) const {
    std::vector<int> found;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = cuts_.end(text, begin);
      const std::string_view word = text.substr(begin, end - begin);
      begin = end + 1;  // the library puts that space back
      if (const auto known = words.find(word)) {
        ids.insert(ids.end(), known->begin(), known->end());
        continue;
      }
      const auto status = model_->Encode({word.data(), word.size()}, &found);
      OSTRO_REQUIRE(status.ok(), "encoding a text of ", word.size(), " bytes: ", status.ToString());
      words.remember(word, found);
      ids.insert(ids.end(), found.begin(), found.end());
    }
  }

  std::unique_ptr<SentencePieceProcessor> model_;
  WordCuts cuts_;
  AddedTokens added_;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_sentencepiece(std::string_view model,
                                               const TokenizerConfig& config,
                                               const std::string& name) {
  auto processor = std::make_unique<SentencePieceProcessor>();
  const auto status = processor->LoadFromSerializedProto({model.data(), model.size()});
  OSTRO_REQUIRE(status.ok() && processor->GetPieceSize() > 0, name,
                " is not a SentencePiece model: ", status.ToString());
  std::vector<AddedToken> added = added_tokens(*processor, config, name);
  TokenTable table = table_of(*processor, added, config, name);
  return std::make_unique<SentencePieceTokenizer>(std::move(processor), std::move(table),
                                                  std::move(added));
}

}  // namespace ostro::txt
