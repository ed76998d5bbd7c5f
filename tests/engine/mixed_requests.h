// Requests of every kind, and what comes of them whatever runs beside.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <random>

#include "engine/engine.h"

namespace ostro::engine {

struct Output {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> log_probs;  // their bits
  std::vector<std::uint32_t> prompt_log_probs;
  std::vector<Finish> finish;
  bool operator==(const Output&) const = default;
};

// Greedy and sampled, with and without rules, many with the same beginning.
inline std::vector<Request> requests(std::size_t count, std::int32_t vocab = 97) {
  std::mt19937 rng(20240);
  std::vector<std::int32_t> common(40);
  for (auto& t : common) t = std::int32_t(rng() % unsigned(vocab));
  std::vector<Request> all;
  for (std::size_t i = 0; i < count; ++i) {
    Request r;
    if (i % 2) r.prompt.assign(common.begin(), common.begin() + std::ptrdiff_t(8 + rng() % 33));
    for (std::size_t n = 1 + rng() % 12; n > 0; --n)
      r.prompt.push_back(std::int32_t(rng() % unsigned(vocab)));
    r.max_new_tokens = std::int64_t(1 + rng() % 30);
    r.sampling.seed = i;
    if (i % 3) r.sampling.top_k = 0;
    if (i % 5 == 0) r.sampling.repetition_penalty = 1.3f;
    if (i % 7 == 0) r.sampling.no_repeat_ngram_size = 2;
    r.end_ids = {2, 3};
    r.prompt_log_probs = i % 8 == 3;
    r.sequences = i % 11 == 4 ? 3 : 1;
    r.user = std::string(1, char('a' + i % 4));
    all.push_back(std::move(r));
  }
  return all;
}

using Key = std::pair<std::size_t, std::int32_t>;  // request, sequence
using Outputs = std::map<Key, Output>;

inline Outputs run(Engine& engine, const std::vector<Request>& requests, std::size_t at_once) {
  Outputs outputs;
  std::map<RequestId, std::size_t> index;
  std::size_t next = 0;
  while (next < requests.size() || !engine.idle()) {
    for (; next < requests.size() && index.size() < at_once; ++next)
      index[engine.submit(requests[next])] = next;
    for (const Event& e : engine.step()) {
      Output& o = outputs[{index.at(e.id), e.sequence}];
      if (e.has_token) {
        o.tokens.push_back(e.token);
        o.log_probs.push_back(std::bit_cast<std::uint32_t>(e.log_prob));
      }
      for (float x : e.prompt_log_probs)
        o.prompt_log_probs.push_back(std::bit_cast<std::uint32_t>(x));
      if (e.finish != Finish::none) o.finish.push_back(e.finish);
      if (e.last) index.erase(e.id);
    }
    engine.pool().check();
  }
  EXPECT_EQ(engine.pool().available(), engine.pool().total());
  return outputs;
}

}  // namespace ostro::engine
