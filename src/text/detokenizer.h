// The text of token ids that arrive one at a time.
//
//   IncrementalDetokenizer detokenizer(tokenizer, prompt_ids);
//   client.write(detokenizer.push(id));   // for each generated id
//   client.write(detokenizer.finish());
//
// What push() and finish() return, joined, is decode(prompt + generated) less decode(prompt): the
// space before the first generated word is there if a prompt came before it. Only whole characters
// are returned; the bytes of one that is not complete yet, those of the prompt's end included, are
// held back, at most three. Keeps a reference to the tokenizer; one thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace ostro::txt {

class IncrementalDetokenizer {
 public:
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer,
                                  std::span<const std::int32_t> prompt = {},
                                  bool skip_special = true);

  // The text that has become certain with `id`; the second form appends it.
  std::string push(std::int32_t id);
  void push(std::int32_t id, std::string& out);

  // What was held back, as U+FFFD: no more ids follow.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool at_start_ = true;  // no token has shown yet
  Utf8Repair repair_;
};

}  // namespace ostro::txt
