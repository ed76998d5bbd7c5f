// What the GEMM of prompts (gemm_tma.cuh) copies: its tiles, their order, their stages in shared
// memory, and the thread that fills them.
#pragma once

#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/tma.cuh"
#include "quant/e4m3.h"

namespace ostro::cuda {

template <class T, bool kSwiglu_, bool kGroupScales_>
struct TmaTile {
  using Element = T;
  static constexpr bool kE4m3 = std::is_same_v<T, __nv_fp8_e4m3>;
  static constexpr bool kSwiglu = kSwiglu_, kGroupScales = kGroupScales_;
  static_assert(kE4m3 || !kGroupScales);
  static constexpr int kRowBytes = 128;  // of a stage: a swizzle row
  static constexpr int kK = kRowBytes / int(sizeof(T));
  static_assert(!kE4m3 || kK == quant::kE4m3Group);
  // Tokens: those of a cluster, cut into parts, one for each warpgroup of each block.
  static constexpr int kCluster = 2, kGroups = 2, kPartTokens = 64;
  static constexpr int kTokens = kCluster * kGroups * kPartTokens;
  static_assert(kTokens == kTmaTile);
  // Weight rows: a block copies half of them, for the whole cluster.
  static constexpr int kHalfRows = 128, kRows = kCluster * kHalfRows;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : kRows;
  static_assert(!kSwiglu || kOutputs == quant::kE4m3Group);
  static constexpr int kHalfBytes = kHalfRows * kRowBytes, kWeightBytes = kRows * kRowBytes;
  static constexpr int kPartBytes = kPartTokens * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kGroups * kPartBytes;
  static constexpr int kStages = 4;
  // Behind stages and barriers: a scale for each weight row, for each warpgroup.
  static constexpr int kScaleBytes = kGroups * kRows * int(sizeof(float));
  static constexpr int kScales = kStages * (kStageBytes + 16);
  static constexpr int kSharedBytes = kScales + kScaleBytes + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // The multiplying warpgroups, and one of which a thread copies.
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kMathRegisters = 240, kCopyRegisters = 24;
  static_assert(128 * (kGroups * kMathRegisters + kCopyRegisters) <= 65536);

  // Where a part begins in the tile: few tokens are shared out to both blocks first, since a
  // warpgroup multiplies by all weight rows.
  static __device__ int first_token(int group, int block) {
    return (group * kCluster + block) * kPartTokens;
  }
};

// The weights of up to so many experts, as launch parameters.
struct TmaWeights {
  struct Matrix {
    CUtensorMap rows;
    const float* scale;
  };
  Matrix weight[kMostTmaExperts], up[kMostTmaExperts];
};
static_assert(sizeof(TmaWeights) < 16000);

// The stage that comes next, and the parity of its barriers' phase.
template <int kStages>
struct StageRing {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The tiles of a cluster: of weight rows and of tokens.
template <class Tile>
struct TileWalk {
  int row_tiles, token_tiles, next;

  __device__ explicit TileWalk(const GemmArgs& a) {
    row_tiles = (a.n + Tile::kOutputs - 1) / Tile::kOutputs;
    token_tiles = a.tiles ? *a.tile_count : a.max_tiles;
    next = int(blockIdx.x) / Tile::kCluster;
  }
  // False if there is none left.
  __device__ bool take(const GemmArgs& a, int& row_tile, TokenTile& tile) {
    if (next >= row_tiles * token_tiles) return false;
    const BlockTile at(row_tiles, token_tiles, next);
    next += int(gridDim.x) / Tile::kCluster;
    row_tile = at.row;
    tile = token_tile_of(a, at.token, Tile::kTokens);
    return true;
  }
};

// The stages and their barriers in shared memory.
template <class Tile>
struct Stages {
  std::uint32_t shared;  // of the first; a multiple of 1024

  __device__ std::uint32_t weights(int stage) const { return shared + stage * Tile::kStageBytes; }
  __device__ std::uint32_t tokens(int stage, int group) const {
    return weights(stage) + Tile::kWeightBytes + group * Tile::kPartBytes;
  }
  __device__ std::uint32_t full(int stage) const {
    return shared + Tile::kStages * Tile::kStageBytes + 8 * stage;
  }
  __device__ std::uint32_t empty(int stage) const { return full(Tile::kStages + stage); }
};

// One thread: all that this block's share of the cluster's tiles needs.
template <class Tile>
__device__ void copy_tiles(const GemmArgs& a, const CUtensorMap& x, const TmaWeights& weights,
                           const Stages<Tile>& stages, int k_tiles) {
  TileWalk<Tile> walk(a);
  StageRing<Tile::kStages> ring;
  int row_tile;
  TokenTile tile;
  static_assert(Tile::kCluster == 2 && Tile::kGroups == 2);
  constexpr std::uint16_t kBoth = 3;
  const int rank = int(blockIdx.x) % Tile::kCluster;
  while (walk.take(a, row_tile, tile)) {
    const TmaWeights::Matrix& matrix =
        Tile::kSwiglu && rank == 1 ? weights.up[tile.expert] : weights.weight[tile.expert];
    const int row = row_tile * Tile::kOutputs + (Tile::kSwiglu ? 0 : rank * Tile::kHalfRows);
    // Warpgroups without tokens need none.
    int parts = 0;
    while (parts < Tile::kGroups && Tile::first_token(parts, rank) < tile.count) ++parts;
    for (int i = 0; i < k_tiles; ++i) {
      const int column = i * Tile::kRowBytes;
      const std::uint32_t barrier = stages.full(ring.stage);
      ptx::barrier_wait(stages.empty(ring.stage), ring.parity ^ 1);
      // What comes from the other block too; it may have come already.
      ptx::barrier_arrive_expect(barrier, Tile::kWeightBytes + parts * Tile::kPartBytes);
      ptx::copy_box_to(kBoth, stages.weights(ring.stage) + rank * Tile::kHalfBytes, matrix.rows,
                       column, row, barrier);
      for (int part = 0; part < parts; ++part)
        ptx::copy_box(stages.tokens(ring.stage, part), x, column,
                      tile.first + Tile::first_token(part, rank), barrier);
      ring.advance();
    }
  }
}

}  // namespace ostro::cuda
