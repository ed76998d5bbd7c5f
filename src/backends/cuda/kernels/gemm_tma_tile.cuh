// What the GEMM of prompts (gemm_tma.cuh) copies: its tiles, their order, and the thread that fills
// their stages.
#pragma once

#include "backends/cuda/kernels/gemm_stages.cuh"
#include "backends/cuda/ptx/tma.cuh"
#include "quant/e4m3.h"

namespace ostro::cuda {

// What a block has to do next: a tile of weight rows times a tile of tokens.
struct TileTask {
  int row_tile;
  TokenTile tokens;
  // A tile of tokens for one warpgroup: each block has weight rows of its own and copies them for
  // itself. They may lie behind the last.
  bool apart;
};

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
  static_assert(kTokens == kTmaTile && kPartTokens == kSmallTile);
  // Weight rows: a block copies half of them, for the whole cluster.
  static constexpr int kHalfRows = 128, kRows = kCluster * kHalfRows;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : kRows;
  static_assert(!kSwiglu || kOutputs == quant::kE4m3Group);
  static constexpr int kHalfBytes = kHalfRows * kRowBytes, kWeightBytes = kRows * kRowBytes;
  static constexpr int kPartBytes = kPartTokens * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kGroups * kPartBytes;
  static constexpr int kStages = 4;
  // By so many stages the second warpgroup starts behind the first.
  static constexpr int kLag = kE4m3 ? 1 : 0;
  static_assert(kLag < kStages);
  // Behind stages and barriers: a scale for each weight row, for each warpgroup.
  static constexpr int kScaleBytes = kGroups * kRows * int(sizeof(float));
  static constexpr int kBarriers = kStages * kStageBytes, kScales = kBarriers + kStages * 16;
  static constexpr int kSharedBytes = kScales + kScaleBytes + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // The multiplying warpgroups, and one of which a thread copies.
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kMathRegisters = 240, kCopyRegisters = 24;
  // A block owns what its threads have at the launch: asked for more, setmaxnreg waits for ever.
  static_assert(128 * (kGroups * kMathRegisters + kCopyRegisters) <=
                kThreads * (65536 / kThreads / 8 * 8));

  // Where a part begins in the tile: few tokens are shared out to both blocks first, since a
  // warpgroup multiplies by all weight rows.
  static __device__ int first_token(int group, const TileTask& task) {
    const int block = task.apart ? 0 : int(blockIdx.x) % kCluster;
    return (group * kCluster + block) * kPartTokens;
  }
};

// The tasks of a block, in the order that keeps both operands in L2: kRaster tiles of weight rows
// by all token tiles, then the next weight rows. Small tiles come last in each such group, so that
// the clusters end at about the same time: a product of 16 tiles of weight rows has one group.
template <class Tile>
struct TileWalk {
  static constexpr int kRaster = Tile::kSwiglu ? 8 : 16;
  static_assert(kRaster % Tile::kCluster == 0);
  int row_tiles, large, small, next;

  __device__ explicit TileWalk(const GemmArgs& a) {
    row_tiles = (a.n + Tile::kOutputs - 1) / Tile::kOutputs;
    if (a.tiles) {
      large = a.tile_count[1];
      small = a.tile_count[0] - large;
    } else {
      const int rest = int(a.slots % Tile::kTokens);
      small = rest > 0 && rest <= Tile::kPartTokens;
      large = a.max_tiles - small;
    }
    next = int(blockIdx.x) / Tile::kCluster;
  }
  // False if there is none left.
  __device__ bool take(const GemmArgs& a, TileTask& task) {
    if (large + small == 0) return false;
    const int group = next / tasks_of(kRaster), first = group * kRaster;
    const int rows = min(kRaster, row_tiles - first);
    int i = next - group * tasks_of(kRaster);
    if (rows <= 0 || i >= tasks_of(rows)) return false;
    next += int(gridDim.x) / Tile::kCluster;
    task.apart = i >= rows * large;
    if (task.apart) {
      i -= rows * large;
      const int pairs = (rows + 1) / 2;
      task.row_tile = first + 2 * (i % pairs) + int(blockIdx.x) % Tile::kCluster;
      i = large + i / pairs;
    } else {
      task.row_tile = first + i % rows;
      i /= rows;
    }
    task.tokens = token_tile_of(a, i, Tile::kTokens);
    return true;
  }

 private:
  // By so many row tiles.
  __device__ int tasks_of(int rows) const { return rows * large + (rows + 1) / 2 * small; }
};

// One thread: all that this block's share of the cluster's tiles needs.
template <class Tile>
__device__ void copy_tiles(const GemmArgs& a, const CUtensorMap& x, const TmaWeights& weights,
                           const Stages<Tile>& stages, int k_tiles) {
  TileWalk<Tile> walk(a);
  StageRing<Tile::kStages> ring;
  TileTask task;
  static_assert(Tile::kCluster == 2 && Tile::kGroups == 2);
  constexpr std::uint16_t kBoth = 3;
  const int rank = int(blockIdx.x) % Tile::kCluster;
  while (walk.take(a, task)) {
    const TokenTile& tile = task.tokens;
    const CUtensorMap& low = weights.weight[tile.expert].rows;
    const CUtensorMap& high = Tile::kSwiglu ? weights.up[tile.expert].rows : low;
    const int low_row = task.row_tile * Tile::kOutputs;
    const int high_row = low_row + (Tile::kSwiglu ? 0 : Tile::kHalfRows);
    // Warpgroups without tokens need none.
    int parts = 0;
    while (parts < Tile::kGroups && Tile::first_token(parts, task) < tile.count) ++parts;
    for (int i = 0; i < k_tiles; ++i) {
      const int column = i * Tile::kRowBytes;
      const std::uint32_t barrier = stages.full(ring.stage), to = stages.weights(ring.stage);
      // By both blocks, of a tile that they multiply apart too: what comes next may be for both.
      ptx::barrier_wait(stages.empty(ring.stage), ring.parity ^ 1);
      // What comes from the other block too; it may have come already.
      ptx::barrier_arrive_expect(barrier, Tile::kWeightBytes + parts * Tile::kPartBytes);
      if (task.apart) {
        ptx::copy_box(to, low, column, low_row, barrier);
        ptx::copy_box(to + Tile::kHalfBytes, high, column, high_row, barrier);
      } else {
        ptx::copy_box_to(kBoth, to + rank * Tile::kHalfBytes, rank == 0 ? low : high, column,
                         rank == 0 ? low_row : high_row, barrier);
      }
      for (int part = 0; part < parts; ++part)
        ptx::copy_box(stages.tokens(ring.stage, part * Tile::kPartTokens), x, column,
                      tile.first + Tile::first_token(part, task), barrier);
      ring.advance();
    }
  }
}

}  // namespace ostro::cuda
