// tokenizer.json, taken apart: its vocabulary and merges, which are nearly all of it, go straight
// into arrays while the file is parsed; the rest becomes a small JSON document.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/string_index.h"
#include "text/token_table.h"

namespace ostro::txt {

struct BpeJsonFile {
  StringIndex tokens;                     // "model" / "vocab" in the file's order
  std::vector<std::int32_t> ids;          // of each, all distinct
  std::string merge_text;                 // the parts of all merges, one after the other
  std::vector<std::uint32_t> merge_ends;  // of each part in merge_text; two parts a merge

  std::vector<BpeMerge> merges() const;  // views into merge_text
};

// The rest: everything but "vocab" and "merges" (of which no trace stays). Throws InvalidArgument
// naming `name`, the token or the merge if the text is not JSON or nests too deep, if a token or an
// id occurs twice, if an id is negative or too large, or if a merge does not have two parts.
nlohmann::json read_bpe_json(std::string_view text, std::string_view name, BpeJsonFile& file);

}  // namespace ostro::txt
