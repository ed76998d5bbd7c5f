// How paged attention is cut into blocks: host code, no CUDA.
#pragma once

#include <cstdint>

namespace ostro::cuda {

// Contexts are cut at these absolute positions, whatever the step: each part is summed alone and
// the parts are joined in order, by one block or by many, with the same roundings. So a query's
// result does not depend on the plan (batch.invariant).
inline constexpr int kSplitTokens = 256;
// Query rows of one warp: a row is one query head of one token; those of all heads that share a
// key head stand together.
inline constexpr int kWarpRows = 16;

// Query rows of a block of attention_wgmma.cuh.
inline constexpr int kWgmmaRows = 128;

struct AttentionPlan {
  int warps = 1;               // of a block; each has kWarpRows rows, all share keys and values
  std::int64_t row_tiles = 0;  // at most so many for each key head
  bool wgmma = false;          // two warpgroups a block, kWgmmaRows rows
  int blocks = 0;              // of wgmma: they take tiles in turns
  int splits = 1;              // a block each, joined by a second kernel; 1: a block does all
};

struct AttentionShape {
  std::int64_t tokens, requests, heads, kv_heads;
  std::int64_t context;  // no request is longer
  bool wgmma = false;    // whether attention_wgmma.cuh has a kernel for it
};

// `processors`: of the device.
AttentionPlan plan_attention(const AttentionShape&, int processors);

}  // namespace ostro::cuda
