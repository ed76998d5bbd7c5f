#include "backends/cuda/plan/tactics.h"

#include <algorithm>

#include "backends/cuda/plan/gemm_plan.h"

namespace ostro::cuda {
namespace {

bool may_decode(const ops::Product& p) {
  return p.weights == DType::f8e4m3 && p.experts == 0 && !p.swiglu && !p.grouped_x;
}

}  // namespace

int planned_tile(const ops::Product& p, std::int64_t tokens, int processors) {
  const bool integer = is_integer(p.weights);
  if (p.experts > 0)
    return integer ? integer_expert_tile(tokens, p.experts)
                   : expert_tile(tokens, p.experts, p.weights == DType::f8e4m3);
  if (may_decode(p) && decode_tile_takes(tokens, p.n, processors)) return kDecodeTile;
  return integer ? integer_tile(tokens, p.n, p.swiglu, processors)
                 : dense_tile(tokens, p.n, p.weights == DType::f8e4m3, p.swiglu, processors);
}

std::vector<int> tiles_of(const ops::Product& p) {
  if (p.weights == DType::f32) return {};
  std::vector<int> tiles;
  for (const int tile : kTokenTiles)
    if (tile <= kLargestTileWithoutTma) tiles.push_back(tile);
  if (p.experts > 0 && p.experts <= kMostTmaExperts && !is_integer(p.weights))
    tiles.push_back(largest_persistent_tile(p.weights));
  if (may_decode(p)) tiles.push_back(kDecodeTile);
  if (p.experts <= kMostTmaExperts)
    tiles.push_back(is_integer(p.weights) ? kIntegerTmaTile : kTmaTile);
  return tiles;
}

// Not those of four times the tokens and more, whose rows are mostly empty, nor those that read
// weights more than 16 times; the two largest are always worth it for many tokens. That of decoding
// is as large as few tokens need; of many there are so many that they take turns.
std::vector<int> tiles_to_try(const ops::Product& p, std::int64_t tokens) {
  constexpr std::int64_t kSmallestTile = 8, kMostEmpty = 4, kMostReads = 16, kMostDecoding = 1024;
  std::vector<int> tiles = tiles_of(p);
  std::erase_if(tiles, [&](std::int64_t tile) {
    if (may_decode(p) && tile == kDecodeTile) return tokens > kMostDecoding;
    return tile > kMostEmpty * std::max(tokens, kSmallestTile) ||
           (tile < kLargestTileWithoutTma && tile * kMostReads < tokens);
  });
  return tiles;
}

}  // namespace ostro::cuda
