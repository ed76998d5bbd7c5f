// Byte-pair encoding: the model of a tokenizer.json, which turns one word into tokens.
//
// A word begins as its characters. The pair of neighbours whose merge has the lowest rank is
// joined, the leftmost first, until no pair has one: O(n log n) for n characters, whatever the
// text. Source: Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with Subword
// Units, arXiv 1508.07909; the corner cases are those of Hugging Face's tokenizers.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/string_index.h"
#include "text/word_memory.h"

namespace ostro::txt {

struct BpeSettings {
  bool byte_fallback = false;  // a character without a token becomes its bytes' "<0xE4>" tokens
  bool fuse_unk = false;       // neighbouring unknown characters make one unk_token
  bool ignore_merges = false;  // a word that is a token is that token
  std::optional<std::string> unk_token;  // without one, unknown characters vanish
};

// Joins (left, right) to left + right.
struct BpeMerge {
  std::string_view left, right;
};

class BpeModel {
 public:
  // `ids[i]` is the id of tokens[i]. `merges` are in order of rank; of equal ones the last counts.
  // Throws InvalidArgument for a merge whose parts or result are not tokens.
  BpeModel(StringIndex tokens, std::vector<std::int32_t> ids, const std::vector<BpeMerge>& merges,
           BpeSettings settings);

  std::optional<std::int32_t> id_of(std::string_view token) const;

  // What a thread needs to encode: buffers, and the words seen so far with their tokens.
  struct Workspace;

  // Appends the tokens of `word`, which is UTF-8. Throws InvalidArgument if it needs unk_token and
  // that is not a token.
  void encode(std::string_view word, Workspace& workspace, std::vector<std::int32_t>& ids) const;

 private:
  struct Merge {
    std::int32_t rank = -1;
    std::int32_t id = -1;
  };
  // A pair of ids to its merge: open addressing, at most half full.
  class MergeTable {
   public:
    explicit MergeTable(std::size_t merges);
    void set(std::int32_t left, std::int32_t right, Merge merge);
    Merge find(std::int32_t left, std::int32_t right) const;  // rank -1 if there is none

   private:
    struct Slot {
      std::uint64_t pair = ~0ull;
      Merge merge;
    };
    std::size_t slot_of(std::uint64_t pair) const;
    int shift_;
    std::vector<Slot> slots_;
  };

  std::int32_t char_id(std::string_view character) const;  // -1 if it has no token
  bool byte_tokens(std::string_view character, Workspace& workspace) const;
  void add_merges(const std::vector<BpeMerge>& merges);
  void find_safe_cuts(const std::vector<BpeMerge>& merges);
  std::size_t safe_cut(std::string_view text, std::size_t from) const;
  void encode_part(std::string_view part, Workspace& workspace,
                   std::vector<std::int32_t>& ids) const;
  void to_symbols(std::string_view part, Workspace& workspace) const;
  void merge(Workspace& workspace) const;

  StringIndex tokens_;
  std::vector<std::int32_t> ids_;
  BpeSettings settings_;
  MergeTable merges_;
  std::int32_t unk_id_ = -1;
  std::array<std::int32_t, 256> byte_ids_{};          // of "<0x00>" ..., -1 if absent
  std::array<std::int32_t, 0x200> small_char_ids_{};  // of characters below U+0200, -1 if absent
  // Whether no token has this byte before a U+2581: then no merge crosses a boundary there, and a
  // text without pre-tokenizer can be cut into words (which recur, and are remembered).
  std::array<bool, 256> cut_after_{};
};

struct BpeModel::Workspace {
  struct Symbol {
    std::int32_t id, previous, next;
  };
  struct Candidate {
    std::uint64_t rank_and_position;
    std::int32_t id;
    bool operator<(const Candidate& other) const {
      return rank_and_position > other.rank_and_position;  // the heap's top is the lowest rank
    }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> queue;
  WordMemory words;
};

}  // namespace ostro::txt
