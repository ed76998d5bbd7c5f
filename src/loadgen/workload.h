// The requests of a benchmark and when they come.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "loadgen/lengths.h"

namespace ostro::loadgen {

// One of prompt, ids and messages is there.
struct Item {
  std::string prompt;
  std::vector<std::int32_t> ids;
  nlohmann::json messages;  // of a chat: [{"role": ..., "content": ...}]
  std::int64_t max_tokens = 0;
};

// Prompts of random ids, `vocab` of them from `first_id` on.
struct SyntheticOptions {
  std::int64_t requests = 0;
  LengthDistribution input, output;
  std::int32_t first_id = 0;
  std::int64_t vocab = 0;
};
std::vector<Item> synthetic(const SyntheticOptions&, Random&);

// A .jsonl file, a line {"prompt" | "input_ids" | "messages": ..., "max_tokens": ...}; a line
// without max_tokens gets a length of `output`. `requests` of them, from the front again when the
// file ends; 0: each line once. Throws InvalidArgument naming the line.
std::vector<Item> read_dataset(const std::filesystem::path&, std::int64_t requests,
                               const LengthDistribution& output, Random&);

// Seconds from the beginning at which each request comes: a Poisson process of `per_second`, or all
// at once if that is infinite.
std::vector<double> arrivals(std::size_t requests, double per_second, Random&);

}  // namespace ostro::loadgen
