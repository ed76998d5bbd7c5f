// How much of a prompt a step may hold while other sequences wait for their next token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace ostro::engine {

// Sizes chunks of prompts so that a step with one takes about `stall_seconds`, or twice as long as
// steps without prompts do where that is more, by the times of the steps so far. What is chosen
// changes when tokens come, not which (batch.invariant).
class PrefillPace {
 public:
  static constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
  static constexpr std::int64_t kFirstTokens = 128;  // while nothing is known
  static constexpr std::int64_t kLeastTokens = 16;   // fewer gain little: weights are read anyway

  // 0: no limit.
  explicit PrefillPace(double stall_seconds) : stall_seconds_(stall_seconds) {}

  // Tokens of prompts that the next step may hold.
  std::int64_t tokens() const {
    if (stall_seconds_ == 0) return kNoLimit;
    if (token_seconds_ == 0) return kFirstTokens;
    const double wanted = std::max(stall_seconds_, 2 * plain_seconds_) / token_seconds_;
    return std::max(kLeastTokens, std::int64_t(std::min(wanted, 1e9)));
  }

  // A step is done, with so many tokens of prompts. A chunk too small to tell the speed is ignored.
  void observe(std::int64_t prompt_tokens, double seconds) {
    if (prompt_tokens == 0) follow(plain_seconds_, seconds);
    if (prompt_tokens >= kLeastTokens) follow(token_seconds_, seconds / double(prompt_tokens));
  }

 private:
  // The mean of late: attention slows a long prompt down as it goes on.
  static void follow(double& mean, double value) { mean = mean == 0 ? value : (mean + value) / 2; }

  double stall_seconds_;
  double token_seconds_ = 0;  // of a step with prompts, for each token of them
  double plain_seconds_ = 0;  // of a step without
};

}  // namespace ostro::engine
