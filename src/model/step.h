// What every rank must know to run one step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/sample.h"

namespace ostro::model {

// Packed tokens of several requests: request r owns [query_start[r], query_start[r+1]).
struct Step {
  std::vector<std::int32_t> ids;          // [tokens]
  std::vector<std::int32_t> query_start;  // [requests + 1]
  std::vector<std::int32_t> context_len;  // [requests], this step's tokens included
  std::vector<std::int32_t> block_table;  // [requests, blocks_each]
  std::int32_t blocks_each = 0;
  std::vector<std::int32_t> rope_tokens;  // [requests], the sequence length that dynamic rotary
                                          // scaling was fixed for at admission
  std::vector<std::int32_t> logit_rows;   // token rows whose logits are computed
  std::vector<std::int32_t> host_rows;    // of logit_rows, rising: those that rank 0 gets
  std::vector<std::int32_t> samples;  // [sample_rows, ops::kSettingWords]: tokens to choose from
                                      // rows of logit_rows
  std::vector<std::int32_t> block_copies;  // [copies, 2], from and to: blocks of the KV cache that
                                           // every layer copies before anything else

  std::int64_t tokens() const { return std::int64_t(ids.size()); }
  std::int64_t requests() const { return std::int64_t(context_len.size()); }
  std::int64_t sample_rows() const { return std::int64_t(samples.size()) / ops::kSettingWords; }
  void add_sample(const ops::SampleSettings&);
  ops::SampleSettings sample(std::int64_t row) const;
  std::int64_t most_alternatives() const;  // that a sample wants
};

// A step as one flat array for broadcasting, and back. An empty array ends the ranks' loop.
std::vector<std::int32_t> pack(const Step&);
Step unpack(std::span<const std::int32_t>);

}  // namespace ostro::model
