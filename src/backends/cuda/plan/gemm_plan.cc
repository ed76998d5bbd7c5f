#include "backends/cuda/plan/gemm_plan.h"

#include <algorithm>
#include <iterator>

#include "base/math.h"

namespace ostro::cuda {
namespace {

// The smallest tile that holds `tokens`, the largest if none does.
const int* smallest_that_holds(std::int64_t tokens) {
  const int* tile = std::lower_bound(std::begin(kTokenTiles), std::end(kTokenTiles), tokens);
  return std::min(tile, std::prev(std::end(kTokenTiles)));
}

}  // namespace

int dense_tile(std::int64_t tokens, std::int64_t n, int processors) {
  const auto enough = [&](int tile) {
    const std::int64_t blocks =
        ceil_div<std::int64_t>(tokens, tile) * ceil_div<std::int64_t>(n, weight_rows(tile));
    return tile > 64 ? 3 * blocks >= 2 * processors : 4 * blocks >= 3 * processors;
  };
  const int* tile = smallest_that_holds(tokens);
  while (tile != std::begin(kTokenTiles) && !enough(*tile)) --tile;
  return *tile;
}

int expert_tile(std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
  constexpr int kLargest = 256, kLargestForWeights = 128;
  static_assert(*std::prev(std::end(kTokenTiles)) == kLargest);
  if (tokens * top_k >= kLargest * experts) return kLargest;
  return std::min(*smallest_that_holds(tokens), kLargestForWeights);
}

std::int64_t most_tiles(std::int64_t slots, std::int64_t experts, int token_tile) {
  if (slots <= experts) return slots;
  // One row in the last tile of each expert, and the rest in full tiles.
  return experts + (slots - experts) / token_tile;
}

}  // namespace ostro::cuda
