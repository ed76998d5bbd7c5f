// What bench throughput and bench serve have in common: which requests, when, and how the figures
// are told.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"
#include "loadgen/summary.h"
#include "loadgen/workload.h"

namespace ostro::cli {

struct LoadFlags {
  std::int64_t num_prompts = 0;  // 0: each line of the data set once, or kDefaultPrompts
  std::string dataset;
  std::string input_len = "128", output_len = "128";
  std::string request_rate = "inf";
  std::string tokenizer_dir;
  std::vector<std::string> goodput;
  double temperature = 0;
  bool ignore_eos = false;
  std::uint64_t seed = 0;
  std::string json;

  void add(CLI::App& app);
};

// The requests that the flags ask for; checks every flag on the way.
struct Load {
  std::vector<loadgen::Item> items;
  std::vector<double> arrivals_s;
  bool synthetic = false;
  loadgen::Goodput goodput;
  double per_second = 0;  // may be infinite

  bool ignore_eos(const LoadFlags& flags) const { return synthetic || flags.ignore_eos; }
};

// Synthetic prompts are made of the ids from 3 (after unk, bos and eos) to `vocab` - 1.
Load make_load(const LoadFlags&, std::int64_t vocab);

// What of the flags goes into the JSON object, in vLLM's names.
nlohmann::ordered_json to_json(const LoadFlags&, const Load&);

// "inf" as null: JSON has no infinity.
nlohmann::ordered_json finite(double value);

// Writes the object to --json's file ("-": the standard output), whole or not at all.
void write_json(const std::string& file, const nlohmann::ordered_json&);

}  // namespace ostro::cli
