// The tiles of a product of tokens and weights: host code, no CUDA.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace ostro::cuda {

// Up to `count` rows of x, consecutive slots from `first`, that one expert multiplies.
struct TokenTile {
  std::int32_t expert;
  std::int32_t first;
  std::int32_t count;
};

// The token rows of the tensor-core kernels' tiles; each is one instantiation. No choice changes a
// result: every output is summed over K in one order in all of them.
inline constexpr int kTokenTiles[] = {8, 16, 32, 64, 256};
// That of the kernel for prompts, for two processors; the copy engine loads its weights, of up to
// so many experts.
inline constexpr int kTmaTile = 256;
// Where tiles are larger, those of at most so many rows come last: they take less time.
inline constexpr int kSmallTile = 64;
inline constexpr std::int64_t kMostTmaExperts = 16;
inline constexpr int kIntegerTmaTile = 128;  // of integer weights
// That of the two kernels for steps of decoding, of dense e4m3 weights without SwiGLU and x with
// one scale a row: tokens up to this by so few weight rows that each processor has one block at
// most.
inline constexpr int kDecodeTile = 128;
// The first of them takes as many tokens as there are, up to so many, by up to so many weight rows;
// the other (kernels/gemm_e4m3_wave.cu) more tokens, in tiles that stand in clusters.
inline constexpr int kMostDenseTokens = 64, kMostDenseRows = 64;
inline constexpr int kWaveRows[] = {64, 96, 128, 192};
inline constexpr int kWaveCluster = 2;  // tiles of tokens with the same weight rows
// The largest of the other kernels, and the only one for e4m3 rows that do not start at 16 bytes.
inline constexpr int kLargestTileWithoutTma = 64;
inline constexpr int kUnalignedE4m3Tile = kLargestTileWithoutTma;
inline constexpr bool is_integer(DType weights) {
  return weights == DType::i8 || weights == DType::u8;
}

// The experts' kernels whose blocks stay (kernels/gemm_persistent.cuh, gemm_persistent_integer.cuh)
// take tiles up to that; the copy engine loads the weights.
inline constexpr int largest_persistent_tile(DType weights) {
  return is_integer(weights) ? kLargestTileWithoutTma : weights == DType::f8e4m3 ? 96 : 128;
}
inline constexpr bool persistent_takes(int token_tile, std::int64_t experts, DType weights) {
  return token_tile <= largest_persistent_tile(weights) && experts <= kMostTmaExperts;
}
// Those of the kernel without tensor cores.
inline constexpr int kSimpleTokenTile = 64;

// The outputs of such a tile: weight rows, or pairs of gate and up rows.
inline constexpr int outputs_of(int token_tile, bool e4m3, bool swiglu) {
  return token_tile == kTmaTile ? swiglu ? 128 : 256 : e4m3 && swiglu ? 128 : 64;
}
// Of integer weights.
inline constexpr int integer_outputs_of(int token_tile, bool swiglu) {
  return token_tile < 64 ? 64 : swiglu ? 128 : 256;
}

// For rows that all have one weight of n rows: the largest tile, of those that are not larger than
// needed, which gives most `processors` a block. Smaller ones read the weights again, from L2.
int dense_tile(std::int64_t tokens, std::int64_t n, bool e4m3, bool swiglu, int processors);

// Whether kDecodeTile is worth it for such rows: if it makes one block a processor at most.
bool decode_tile_takes(std::int64_t tokens, std::int64_t n, int processors);
// The tiles for more than kMostDenseTokens: of the fewest weight rows with which it does so, of the
// most if none does.
struct WaveTiles {
  int rows, tokens;
  bool operator==(const WaveTiles&) const = default;
};
WaveTiles wave_tiles(std::int64_t tokens, std::int64_t n, int processors);

// For routed rows. One expert rarely gets as many as there are tokens, but its weights must not be
// read twice when it does; a tile costs shared memory, not time: rows that are not there are
// neither loaded nor stored.
int expert_tile(std::int64_t tokens, std::int64_t experts, bool e4m3);
// The same two for integer weights.
int integer_tile(std::int64_t tokens, std::int64_t n, bool swiglu, int processors);
int integer_expert_tile(std::int64_t tokens, std::int64_t experts);

// No routing of `slots` rows to `experts` makes more tiles: each expert has at most one that is not
// full.
std::int64_t most_tiles(std::int64_t slots, std::int64_t experts, int token_tile);

}  // namespace ostro::cuda
