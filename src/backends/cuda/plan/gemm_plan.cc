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

// Down from `tile` until enough processors have a block. That of prompts takes two for a tile, but
// is several times as fast: from 128 tokens on a sixth as many tiles as processors is enough (256
// tokens, K 4096, an H200: 24 tiles took 28.5 us; 16 took 29.4, 22.8 with smaller ones).
template <class Outputs>
int largest_that_fills(const int* tile, std::int64_t tokens, std::int64_t n, int processors,
                       const Outputs& outputs) {
  const auto enough = [&](int size) {
    const std::int64_t tiles =
        ceil_div<std::int64_t>(tokens, size) * ceil_div<std::int64_t>(n, outputs(size));
    if (size == kTmaTile) return (tokens > 128 ? 6 : 3) * tiles >= processors;
    return 4 * tiles >= 3 * processors;
  };
  while (tile != std::begin(kTokenTiles) && !enough(*tile)) --tile;
  return *tile;
}

bool one_wave(const WaveTiles& tiles, std::int64_t tokens, std::int64_t n, int processors) {
  const std::int64_t clusters = ceil_div<std::int64_t>(n, tiles.rows) *
                                ceil_div<std::int64_t>(tokens, kWaveCluster * tiles.tokens);
  return kWaveCluster * clusters <= processors;
}

}  // namespace

int dense_tile(std::int64_t tokens, std::int64_t n, bool e4m3, bool swiglu, int processors) {
  return largest_that_fills(smallest_that_holds(tokens), tokens, n, processors,
                            [&](int tile) { return outputs_of(tile, e4m3, swiglu); });
}

bool decode_tile_takes(std::int64_t tokens, std::int64_t n, int processors) {
  if (tokens <= kMostDenseTokens) return ceil_div<std::int64_t>(n, kMostDenseRows) <= processors;
  return one_wave(wave_tiles(tokens, n, processors), tokens, n, processors);
}

WaveTiles wave_tiles(std::int64_t tokens, std::int64_t n, int processors) {
  WaveTiles tiles{.rows = 0,
                  .tokens = tokens <= kDecodeTile ? kDecodeTile / kWaveCluster : kDecodeTile};
  for (const int rows : kWaveRows) {
    tiles.rows = rows;
    if (one_wave(tiles, tokens, n, processors)) break;
  }
  return tiles;
}

int expert_tile(std::int64_t tokens, std::int64_t experts, bool e4m3) {
  static_assert(*std::prev(std::end(kTokenTiles)) == kTmaTile);
  const int tile = std::min(*smallest_that_holds(tokens), kLargestTileWithoutTma);
  // Of 8 experts with 2 choices a token, one rarely gets more than half of 128 tokens, three
  // eighths of 256 or a third of 384. Of up to 192 tokens of e4m3 prompts' tile is as fast.
  if (tokens <= 2 * kLargestTileWithoutTma || experts > kMostTmaExperts) return tile;
  const bool persistent = e4m3 ? tokens > 192 && tokens <= 256 : tokens <= 384;
  return persistent ? largest_persistent_tile(e4m3 ? DType::f8e4m3 : DType::bf16) : kTmaTile;
}

int integer_tile(std::int64_t tokens, std::int64_t n, bool swiglu, int processors) {
  const std::int64_t blocks =
      ceil_div<std::int64_t>(tokens, kIntegerTmaTile) *
      ceil_div<std::int64_t>(n, integer_outputs_of(kIntegerTmaTile, swiglu));
  if (tokens > kLargestTileWithoutTma && 3 * blocks >= 2 * processors) return kIntegerTmaTile;
  const std::int64_t held = std::min<std::int64_t>(tokens, kLargestTileWithoutTma);
  return largest_that_fills(smallest_that_holds(held), tokens, n, processors,
                            [&](int tile) { return integer_outputs_of(tile, swiglu); });
}

int integer_expert_tile(std::int64_t tokens, std::int64_t experts) {
  // Tiles of prompts multiply by 128 tokens even if there are fewer.
  constexpr std::int64_t kPromptTokens = 256;
  if (tokens > kPromptTokens && experts <= kMostTmaExperts) return kIntegerTmaTile;
  return std::min(*smallest_that_holds(tokens), kLargestTileWithoutTma);
}

std::int64_t most_tiles(std::int64_t slots, std::int64_t experts, int token_tile) {
  if (slots <= experts) return slots;
  // One row in the last tile of each expert, and the rest in full tiles.
  return experts + (slots - experts) / token_tile;
}

}  // namespace ostro::cuda
