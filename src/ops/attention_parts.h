// The parts in which a GPU's kernels sum attention over long contexts: what they and whoever counts
// their memory must agree on.
#pragma once

#include <cstdint>

namespace ostro::ops {

// Contexts are cut at the absolute positions that this divides.
inline constexpr int kAttentionPartTokens = 512;

// A part of one query head of one token keeps so many floats: its sums, their maximum and weight.
constexpr std::int64_t attention_part_floats(std::int64_t head_dim) { return head_dim + 2; }

// No step keeps more parts: 68 MB of them at head_dim 128.
inline constexpr std::int64_t kMostAttentionParts = std::int64_t{1} << 17;

}  // namespace ostro::ops
