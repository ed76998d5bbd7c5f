// The prompts of `ostro run`: from the command line or a file, as text or ids.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace ostro::cli {

struct PromptFlags {
  std::vector<std::string> input_text = {"Born in north-east France, Soyer trained as a"};
  std::string input_file;
  std::string tokenizer_dir;
  std::int64_t max_input_length = 0;  // 0: a longer prompt is an error
  bool no_add_special_tokens = false;
  bool chat = false;
};

// Token ids of each prompt. Texts need `tokenizer` (may be null); ids in a .csv (a row of ids a
// line, separated by commas or spaces) or .npy (a row each, its end padded with -1) do not. Prompts
// over max_input_length lose their left end, with a line on stderr.
std::vector<std::vector<std::int32_t>> read_prompts(const PromptFlags&, const txt::Tokenizer*);

}  // namespace ostro::cli
