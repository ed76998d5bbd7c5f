// What every rank must know to run one step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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
  std::vector<std::int32_t> logit_rows;   // token rows whose logits are wanted

  std::int64_t tokens() const { return std::int64_t(ids.size()); }
  std::int64_t requests() const { return std::int64_t(context_len.size()); }
};

// A step as one flat array for broadcasting, and back. An empty array ends the ranks' loop.
std::vector<std::int32_t> pack(const Step&);
Step unpack(std::span<const std::int32_t>);

}  // namespace ostro::model
