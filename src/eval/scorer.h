// Scores documents with an engine, or with two of them side by side.
#pragma once

#include <functional>
#include <vector>

#include "engine/engine.h"
#include "eval/divergence.h"
#include "eval/windows.h"

namespace ostro::eval {

// Requests that an engine has at once: enough to fill its steps, few enough to hold.
inline constexpr std::int64_t kMostOpen = 256;

// Documents of token ids and how they are cut; a stride of 0 cuts them at `length`.
struct Texts {
  std::vector<std::vector<std::int32_t>> documents;
  std::int64_t length = 0;
  std::int64_t stride = 0;
};

// Sum of the negative log-likelihoods, natural, and of how many tokens.
struct Score {
  double nats = 0;
  std::int64_t tokens = 0;

  double mean() const { return nats / double(tokens); }
};

// `done` in [0, 1], now and then.
using Progress = std::function<void(double done)>;

Score score(engine::Engine&, const Texts&, const Progress&);

struct Comparison {
  Score model, reference;
  Divergences divergences;  // over the scored tokens
};

// Steps both engines in turn, so that the logits that wait for their counterpart are those of a few
// steps, whatever the length of the texts, where both have the same limits. Both have `vocab`
// tokens and take windows of that length.
Comparison compare(engine::Engine& model, engine::Engine& reference, std::int64_t vocab,
                   const Texts&, const Progress&);

}  // namespace ostro::eval
