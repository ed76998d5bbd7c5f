#include "backends/cuda/plan/attention_plan.h"

#include <algorithm>

#include "base/math.h"

namespace ostro::cuda {
namespace {

// A part takes head_dim + 2 floats of scratch: 68 MB of them at head_dim 128.
constexpr std::int64_t kMostParts = std::int64_t{1} << 17;

}  // namespace

AttentionPlan plan_attention(const AttentionShape& s, int processors) {
  if (s.tokens == 0 || s.requests == 0) return {};
  const std::int64_t rows = s.tokens * (s.heads / s.kv_heads);
  AttentionPlan plan;
  // Four warps share what they load where most requests have rows for them.
  constexpr int kManyWarps = 4;
  plan.warps = rows / s.requests > 2 * kWarpRows ? kManyWarps : 1;
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
  if (splits > 1 && blocks < wanted && s.tokens * s.heads * splits <= kMostParts)
    plan.splits = int(splits);
  if (s.wgmma && plan.warps == kManyWarps && plan.splits == 1) {
    plan.wgmma = true;
    plan.row_tiles = rows / kWgmmaRows + s.requests;
    plan.blocks = int(std::min<std::int64_t>(plan.row_tiles * s.kv_heads, processors));
  }
  return plan;
}

}  // namespace ostro::cuda
