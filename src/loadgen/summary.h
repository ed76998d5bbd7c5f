// What became of the requests of a benchmark, and the figures made of it. Names and definitions are
// those of `vllm bench serve`.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace ostro::loadgen {

// One request. Times are seconds since the benchmark began.
struct Record {
  double start_s = 0;                  // it was sent
  std::vector<double> arrived_s = {};  // each piece of the answer came: a token, or a few
  double end_s = 0;
  std::int64_t input_tokens = 0;
  std::int64_t output_tokens = 0;
  bool counted_pieces = false;  // the server told no usage: pieces count as tokens
  std::string error = {};       // empty: completed

  bool completed() const { return error.empty(); }
  double ttft_s() const { return arrived_s.front() - start_s; }
  double e2el_s() const { return end_s - start_s; }
  // After the first token; empty if there is no second.
  std::optional<double> tpot_s() const;
};

// Of some values, in their unit. Percentiles are interpolated between neighbours, as by NumPy.
struct Distribution {
  std::size_t count = 0;
  double mean = 0, std = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;

  static Distribution of(std::vector<double> values);
};

// Limits in milliseconds that a good request keeps, by "ttft", "tpot" or "e2el".
using Goodput = std::map<std::string, double>;
// "ttft:500", "tpot:50" ... Throws InvalidArgument naming what is wrong.
Goodput parse_goodput(const std::vector<std::string>& limits);

struct Summary {
  double duration_s = 0;  // until the last answer ended
  std::int64_t completed = 0, failed = 0, good = 0;
  std::int64_t input_tokens = 0, output_tokens = 0;  // of completed requests
  bool counted_pieces = false;                       // of some record
  Distribution ttft_ms, tpot_ms, itl_ms, e2el_ms;
  std::int64_t most_at_once = 0;  // requests that were open
  // While as many as that were open, between the first time and the last; empty if that was never
  // so for two pieces of answers.
  double steady_s = 0;
  double steady_output_tokens = 0;
  std::map<std::string, std::int64_t> errors;  // and how often each came
};

Summary summarise(const std::vector<Record>&, const Goodput&);

// The figures as lines of text, and as vLLM's fields.
std::string to_text(const Summary&, const Goodput&);
nlohmann::ordered_json to_json(const Summary&, const Goodput&);

}  // namespace ostro::loadgen
