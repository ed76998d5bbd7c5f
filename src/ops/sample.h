#pragma once

#include <span>
#include <type_traits>
#include <vector>

#include "tensor/view.h"

namespace ostro::ops {

// How the next token is chosen from one row of logits. Greedy (the largest logit, the lower id
// among equals) if temperature is 0 or top_k is 1.
struct SampleSettings {
  std::int32_t row = 0;           // of the logits; -1: nothing is chosen
  std::int32_t log_prob = 0;      // 1: wanted
  std::int32_t alternatives = 0;  // the most likely tokens that are wanted
  float temperature = 1;          // >= 0
  std::int32_t top_k = 1;         // the most likely tokens that stay; 0: all
  float top_p = 0;         // the fewest tokens whose probabilities reach it stay; 0 or 1: all
  float min_p = 0;         // tokens of at least min_p times the best probability stay
  std::uint32_t step = 0;  // tokens that the sequence has generated before
  std::uint32_t seed_low = 0, seed_high = 0;

  std::uint64_t seed() const { return std::uint64_t{seed_high} << 32 | seed_low; }
  void set_seed(std::uint64_t seed) {
    seed_low = std::uint32_t(seed);
    seed_high = std::uint32_t(seed >> 32);
  }
};
inline constexpr std::int64_t kSettingWords = sizeof(SampleSettings) / sizeof(std::int32_t);
static_assert(sizeof(SampleSettings) == 40 && std::is_trivially_copyable_v<SampleSettings>);

// Chooses a token from rows of logits:
//   w[i] = exp((logits[row, i] - the largest) / temperature), of the candidates that stay
//   token = the first, by falling logit, then rising id, up to which w sums to more than u * all,
//           u in [0, 1) from the seed and the step alone
//
//   logits         [logit rows, vocab]    f32  in; NaN and -infinity are never chosen
//   settings       [rows, kSettingWords]  i32  in, a SampleSettings each, row < logit rows
//   tokens         [rows, 1]              i32  out; -1 if its row is -1 or has no finite largest
//   logit log_probs      [rows, 1]              f32  out, log softmax(logits)[token]; 0 if not
//   wanted best           [rows, most]           i32  out, the `alternatives` most likely tokens,
//   the best
//                                              first, lower ids among equals; -1 beyond
//   best_log_probs [rows, most]           f32  out; 0 beyond
//
// vocab <= 2^24; most may be 0. Weights are f64, their sums f64 or 62-bit fixed point. rows = 0
// does nothing. Fan et al. 2018, arXiv:1805.04833 (top_k); Holtzman et al. 2019, arXiv:1904.09751
// (top_p); Nguyen et al. 2024, arXiv:2407.01082 (min_p).
struct Sample {
  View logits;
  View settings;
  View tokens;
  View log_probs;
  View best;
  View best_log_probs;
};

void check(const Sample&);
void reference(const Sample&);

// More alternatives than this are left to the host.
inline constexpr std::int64_t kMostAlternatives = 32;

// The outputs side by side, as one i32 matrix: token, log_prob, best [most], best_log_probs [most].
struct SampleOutputs {
  View tokens, log_probs, best, best_log_probs;
};
constexpr std::int64_t sample_output_words(std::int64_t most) { return 2 + 2 * most; }
SampleOutputs cut_outputs(const View& words);

// The same on the host, a row at a time.

struct Likely {
  std::int32_t token = 0;
  float log_prob = 0;
};

// log softmax(logits)[token], summed in f64. A NaN among the logits counts as -infinity.
float log_prob(std::span<const float> logits, std::int32_t token);

// The index of the largest logit, the lowest among equals. NaN is never chosen; -1 if the largest
// is not finite.
std::int32_t most_likely(std::span<const float> logits);

// The k most likely tokens with their log-probabilities, the best first, lower ids among equals.
std::vector<Likely> most_likely(std::span<const float> logits, std::int32_t k);

// A uniform number in [0, 1) from a seed and a counter.
double uniform(std::uint64_t seed, std::uint64_t counter);

// Keeps its workspace between calls; one thread.
class HostSampler {
 public:
  // As Sample does; -1 without a finite largest logit.
  std::int32_t token(std::span<const float> logits, const SampleSettings&);
  // Row r of a Sample on the host.
  void run(const Sample&, std::int64_t r);

 private:
  struct Candidate {
    float logit;
    std::int32_t token;
  };
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
};

}  // namespace ostro::ops
