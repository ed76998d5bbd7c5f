// A tokenizer's vocabulary, for guided decoding.
#pragma once

#include "ostro/executor.h"
#include "text/tokenizer.h"

namespace ostro::cli {

// Of ids below `vocab`, the model's.
Vocabulary vocabulary_of(const txt::Tokenizer&, std::int64_t vocab);

}  // namespace ostro::cli
