// Scores documents with an engine.
#pragma once

#include <functional>
#include <vector>

#include "engine/engine.h"
#include "eval/windows.h"

namespace ostro::eval {

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

}  // namespace ostro::eval
