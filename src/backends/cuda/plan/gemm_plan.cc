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

// Down from `tile` until most processors have a block.
template <class Outputs>
int largest_that_fills(const int* tile, std::int64_t tokens, std::int64_t n, int processors,
                       const Outputs& outputs) {
  const auto enough = [&](int size) {
    const std::int64_t blocks =
        ceil_div<std::int64_t>(tokens, size) * ceil_div<std::int64_t>(n, outputs(size));
    return size > 64 ? 3 * blocks >= 2 * processors : 4 * blocks >= 3 * processors;
  };
  while (tile != std::begin(kTokenTiles) && !enough(*tile)) --tile;
  return *tile;
}

}  // namespace

int dense_tile(std::int64_t tokens, std::int64_t n, int processors) {
  return largest_that_fills(smallest_that_holds(tokens), tokens, n, processors, outputs_of);
}

int dense_tile_e4m3(std::int64_t tokens, std::int64_t n, bool swiglu, int processors) {
  return largest_that_fills(smallest_that_holds(std::min<std::int64_t>(tokens, kLargestE4m3Tile)),
                            tokens, n, processors,
                            [&](int tile) { return outputs_of_e4m3(tile, swiglu); });
}

int expert_tile(std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
  constexpr int kLargest = 256, kLargestForWeights = 128;
  static_assert(*std::prev(std::end(kTokenTiles)) == kLargest);
  if (tokens * top_k >= kLargest * experts) return kLargest;
  return std::min(*smallest_that_holds(tokens), kLargestForWeights);
}

int expert_tile_e4m3(std::int64_t tokens) {
  return std::min(*smallest_that_holds(tokens), kLargestE4m3Tile);
}

std::int64_t most_tiles(std::int64_t slots, std::int64_t experts, int token_tile) {
  if (slots <= experts) return slots;
  // One row in the last tile of each expert, and the rest in full tiles.
  return experts + (slots - experts) / token_tile;
}

}  // namespace ostro::cuda
