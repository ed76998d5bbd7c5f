#include "backends/cuda/plan/attention_plan.h"

#include <algorithm>

#include "base/math.h"

namespace ostro::cuda {
namespace {

// For each key head.
std::int64_t rows_of(const AttentionShape& s) { return s.tokens * (s.heads / s.kv_heads); }
bool has_many_rows(const AttentionShape& s) { return rows_of(s) / s.requests > 2 * kWarpRows; }

bool parts_fit(const AttentionShape& s, std::int64_t splits) {
  return s.tokens * s.heads * splits <= ops::kMostAttentionParts;
}

// Blocks take items in turns. Parts are items of their own where the longest turns so become a
// fifth shorter; joining them takes a kernel more.
AttentionPlan plan_single_tokens(const AttentionShape& s, int processors) {
  const std::int64_t items = s.tokens * s.kv_heads, blocks = s.decode * std::int64_t{processors};
  const std::int64_t splits = ceil_div<std::int64_t>(s.context, kSplitTokens);
  AttentionPlan plan{.decode = true};
  const std::int64_t turns = ceil_div(items, blocks), part_turns = ceil_div(items * splits, blocks);
  if (5 * part_turns <= 4 * turns * splits && parts_fit(s, splits)) plan.splits = int(splits);
  plan.blocks = int(std::min(items * plan.splits, blocks));
  return plan;
}

}  // namespace

// A second launch takes 6 us. On a bf16 cache the kernel for many rows a request is as fast with
// single tokens among them, on an e4m3 cache it is not (H100, 64 of 512 positions and a chunk of
// 512: 69 us together, 50 apart).
bool single_apart(const AttentionShape& s, std::int64_t single, bool e4m3_cache) {
  constexpr std::int64_t kFewest = 8;
  if (s.decode == 0 || single < kFewest || single >= s.requests) return false;
  return e4m3_cache || !has_many_rows(s);
}

AttentionPlan plan_attention(const AttentionShape& s, int processors) {
  if (s.tokens == 0 || s.requests == 0) return {};
  if (s.decode > 0 && s.tokens <= s.requests) return plan_single_tokens(s, processors);
  const std::int64_t rows = rows_of(s);
  AttentionPlan plan;
  // Four warps share what they load where most requests have rows for them.
  constexpr int kManyWarps = 4;
  plan.warps = has_many_rows(s) ? kManyWarps : 1;
  // The tiles of request r are numbered from floor(first row / tile) + r, which leaves room for its
  // last, partial one.
  plan.row_tiles = rows / (plan.warps * kWarpRows) + s.requests;
  // Parts go to blocks of their own while there are too few blocks to hide the memory's latency and
  // to share the work evenly: a multiprocessor holds three, or two of four warps. Warpgroups are so
  // much faster than those that a block for each multiprocessor is enough.
  const std::int64_t each = plan.warps == 1 ? 16 : s.wgmma ? 1 : 2;
  const std::int64_t wanted = each * std::int64_t{processors};
  const std::int64_t blocks = plan.row_tiles * s.kv_heads;
  const std::int64_t splits = ceil_div<std::int64_t>(s.context, kSplitTokens);
  if (splits > 1 && blocks < wanted && parts_fit(s, splits)) plan.splits = int(splits);
  if (s.wgmma && plan.warps == kManyWarps && plan.splits == 1) {
    plan.wgmma = true;
    plan.row_tiles = rows / kWgmmaRows + s.requests;
    plan.blocks = int(std::min<std::int64_t>(plan.row_tiles * s.kv_heads, processors));
  }
  return plan;
}

}  // namespace ostro::cuda
