// How paged attention is cut into blocks: host code, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/attention_parts.h"

namespace ostro::cuda {

// Contexts are cut at these absolute positions, whatever the step: each part is summed alone and
// the parts are joined in order, by one block or by many, with the same roundings. So a query's
// result does not depend on the plan (batch.invariant).
inline constexpr int kSplitTokens = ops::kAttentionPartTokens;
// Query rows of one warp: a row is one query head of one token; those of all heads that share a
// key head stand together.
inline constexpr int kWarpRows = 16;

// Query rows of a block of attention_wgmma.cuh.
inline constexpr int kWgmmaRows = 128;
// Most query heads to a key head in attention_decode.cuh.
inline constexpr int kMostDecodeGroup = 8;
// Its blocks on a multiprocessor, of a cache whose elements have so many bytes.
constexpr int decode_blocks(std::size_t cache_bytes) { return cache_bytes == 1 ? 2 : 1; }

struct AttentionPlan {
  int warps = 1;               // of a block; each has kWarpRows rows, all share keys and values
  std::int64_t row_tiles = 0;  // at most so many for each key head
  bool wgmma = false;          // two warpgroups a block, kWgmmaRows rows
  bool decode = false;         // attention_decode.cuh: a token at a time
  int blocks = 0;              // of wgmma and decode: they take tiles or tokens in turns
  int splits = 1;              // a block each, joined by a second kernel; 1: a block does all
};

struct AttentionShape {
  std::int64_t tokens, requests, heads, kv_heads;
  std::int64_t context;  // no request is longer
  bool wgmma = false;    // whether attention_wgmma.cuh has a kernel for it
  int decode = 0;        // blocks of attention_decode.cuh on a multiprocessor; 0: it has none
};

// Whether a step whose first `single` requests have one token each is worth two kernels, that of
// single tokens for these and the prompts' for the others.
bool single_apart(const AttentionShape&, std::int64_t single, bool e4m3_cache);

// `processors`: of the device.
AttentionPlan plan_attention(const AttentionShape&, int processors);

}  // namespace ostro::cuda
