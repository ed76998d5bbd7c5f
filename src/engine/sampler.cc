#include "engine/sampler.h"

#include <cmath>
#include <limits>

#include "base/error.h"

namespace ostro::engine {
namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void check_ids(std::span<const std::int32_t> ids, const char* what, std::int64_t vocab) {
  for (std::int32_t id : ids)
    OSTRO_REQUIRE(id >= 0 && id < vocab, what, " has token ", id, "; the vocabulary has ids 0 to ",
                  vocab - 1);
}

}  // namespace

void check(const Sampling& s) {
  OSTRO_REQUIRE(std::isfinite(s.temperature) && s.temperature >= 0, "temperature is ",
                s.temperature, "; it must be 0 or more");
  OSTRO_REQUIRE(s.top_k >= 0, "top_k is ", s.top_k, "; it must be 0 (all) or more");
  OSTRO_REQUIRE(s.top_p >= 0 && s.top_p <= 1, "top_p is ", s.top_p, "; it must be in [0, 1]");
  OSTRO_REQUIRE(s.min_p >= 0 && s.min_p <= 1, "min_p is ", s.min_p, "; it must be in [0, 1]");
  OSTRO_REQUIRE(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0,
                "repetition_penalty is ", s.repetition_penalty, "; it must be over 0");
  OSTRO_REQUIRE(std::isfinite(s.presence_penalty), "presence_penalty is ", s.presence_penalty);
  OSTRO_REQUIRE(std::isfinite(s.frequency_penalty), "frequency_penalty is ", s.frequency_penalty);
  OSTRO_REQUIRE(s.no_repeat_ngram_size >= 0, "no_repeat_ngram_size is ", s.no_repeat_ngram_size,
                "; it must be 0 (off) or more");
  OSTRO_REQUIRE(s.min_tokens >= 0, "min_tokens is ", s.min_tokens, "; it must be 0 or more");
  for (const auto& [token, bias] : s.logit_bias)
    OSTRO_REQUIRE(std::isfinite(bias), "the logit_bias of token ", token, " is ", bias);
  for (const auto& word : s.bad_words) OSTRO_REQUIRE(!word.empty(), "a bad word has no tokens");
}

void check(const Sampling& s, std::int64_t vocab) {
  check(s);
  for (const auto& entry : s.logit_bias) check_ids({&entry.first, 1}, "logit_bias", vocab);
  for (const auto& word : s.bad_words) check_ids(word, "a bad word", vocab);
}

std::int32_t argmax(std::span<const float> logits) {
  const std::int32_t best = ops::most_likely(logits);
  OSTRO_CHECK(best >= 0, "no finite logit among ", logits.size());
  return best;
}

void log_softmax(std::span<const float> logits, std::vector<float>& log_probs) {
  const std::int32_t best = argmax(logits);
  const double shift = double(log_prob(logits, best)) - double(logits[std::size_t(best)]);
  log_probs.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    log_probs[i] = std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity()
                                         : float(double(logits[i]) + shift);
}

std::uint64_t sequence_seed(std::uint64_t seed, std::int32_t i) {
  return i == 0 ? seed : mix(mix(seed) + std::uint64_t(i));
}

ops::SampleSettings settings_of(const Sampling& s, std::uint64_t seed, std::int64_t step) {
  ops::SampleSettings settings;
  settings.temperature = s.temperature;
  settings.top_k = s.top_k;
  settings.top_p = s.top_p;
  settings.min_p = s.min_p;
  settings.step = std::uint32_t(step);
  settings.set_seed(seed);
  return settings;
}

Choice Sampler::choose(std::span<const float> logits, const Sampling& s, std::int64_t step) {
  const std::int32_t chosen = token(logits, s, s.seed, step);
  return {chosen, log_prob(logits, chosen)};
}

std::int32_t Sampler::token(std::span<const float> logits, const Sampling& s, std::uint64_t seed,
                            std::int64_t step) {
  const std::int32_t chosen = sampler_.token(logits, settings_of(s, seed, step));
  OSTRO_CHECK(chosen >= 0, "no finite logit among ", logits.size());
  return chosen;
}

}  // namespace ostro::engine
