// What the GEMM of experts whose blocks stay (gemm_persistent.cuh, gemm_persistent_integer.cuh)
// copies: its tiles, their order, their stages in shared memory, and the threads that fill them.
#pragma once

#include "backends/cuda/kernels/gemm_stages.cuh"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/tma.cuh"
#include "quant/e4m3.h"

namespace ostro::cuda {

// kGroups warpgroups multiply, each 64 rows of each of kHalves parts of the weight rows.
template <class T, int kTokens_, int kStages_, bool kSwiglu_, int kGroups_ = 2, int kHalves_ = 2>
struct PersistentTile {
  using Element = T;
  static constexpr int kTokens = kTokens_, kStages = kStages_;
  static constexpr int kGroups = kGroups_, kHalves = kHalves_;
  static constexpr bool kE4m3 = std::is_same_v<T, __nv_fp8_e4m3>;
  static constexpr bool kSwiglu = kSwiglu_, kGroupScales = kE4m3 && !kSwiglu;
  static constexpr int kRowBytes = 128;  // of a stage: a swizzle row
  static constexpr int kK = kRowBytes / int(sizeof(T));
  static_assert(!kE4m3 || kK == quant::kE4m3Group);
  static constexpr int kHalfRows = 64 * kGroups, kRows = kHalves * kHalfRows;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : kRows;
  static_assert(!kSwiglu || (kHalves == 2 && kOutputs == quant::kE4m3Group));
  static constexpr int kHalfBytes = kHalfRows * kRowBytes, kWeightBytes = kHalves * kHalfBytes;
  static constexpr int kTokenBytes = kTokens * kRowBytes, kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kTokenBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  // Behind the stages: the tokens' scales of each, or those of the tile; results; barriers.
  static constexpr int kScales = kStages * kStageBytes;
  static constexpr int kScaleBytes = (kGroupScales ? kStages : int(kE4m3)) * kTokens * 4;
  static constexpr int kSums = kScales + kScaleBytes;
  // Results lie there for so many tokens at a time.
  static constexpr int kSumTokens = kTokens > 64 ? kTokens / 2 : kTokens;
  static constexpr int kSumStride = kHalfRows + 4;  // lanes that share rows write other banks
  static constexpr int kBarriers = kSums + (kSwiglu ? kSumTokens * kSumStride * 4 : 0);
  static constexpr int kSharedBytes = kBarriers + kStages * 16 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // Many tokens of e4m3, whose products take less time, come by the copy engine, in boxes: they lie
  // in a row.
  static constexpr bool kBoxes = kE4m3 && kTokens > kLargestTileWithoutTma;
  static constexpr int kBoxTokens = 16, kBoxBytes = kBoxTokens * kRowBytes;
  static_assert(!kBoxes || kTokens % kBoxTokens == 0);
  // The warpgroups that multiply, and one that copies: a thread weights, two warps tokens; or a
  // thread their boxes, and a warp their scales if each stage has some.
  static constexpr int kMathThreads = 128 * kGroups, kMathWarps = kMathThreads / 32;
  static constexpr int kReaders = kMathWarps;  // warps that read a stage
  static constexpr int kThreads = kMathThreads + 128;
  static constexpr int kTokenWarps = kBoxes ? kGroupScales : 2, kTokenThreads = 32 * kTokenWarps;
  static constexpr int kTokenRowStep = 8;
  static_assert(kBoxes || kTokenRowStep == kTokenThreads / 8);
  static_assert(kTokenRowStep % 8 == 0, "rows of one thread swizzle alike");
  static constexpr int kMathRegisters = kE4m3 ? 224 : 200,
                       kCopyRegisters = 504 - 2 * kMathRegisters;
  static constexpr bool kSharesRegisters = kGroups == 2;
  static_assert(128 * (2 * kMathRegisters + kCopyRegisters) <= 65536);
};

// What a block has in shared memory, from a multiple of 1024 bytes on.
template <class Tile>
struct PersistentMemory : Stages<Tile> {
  unsigned char* data;

  __device__ std::uint32_t scale(int stage, int token) const {
    return this->shared + Tile::kScales + (stage * Tile::kTokens + token) * 4;
  }
  __device__ const float* scales(int stage) const {
    return reinterpret_cast<const float*>(data + Tile::kScales) + stage * Tile::kTokens;
  }
  // Of tokens that have one scale for all columns.
  __device__ float* token_scales() const { return reinterpret_cast<float*>(data + Tile::kScales); }
  __device__ float* sums(int token) const {
    return reinterpret_cast<float*>(data + Tile::kSums) + token * Tile::kSumStride;
  }
};

// The tiles of a block. The list is read from L2: it may be newer than what an earlier kernel has
// left in L1.
template <class Tile>
struct PersistentWalk {
  int row_tiles, token_tiles, next, row_tile;
  TokenTile tile;

  __device__ explicit PersistentWalk(const GemmArgs& a)
      : row_tiles((a.n + Tile::kOutputs - 1) / Tile::kOutputs),
        token_tiles(__ldcg(a.tile_count)),
        next(int(blockIdx.x)) {}
  // False if there is none left.
  __device__ bool take(const GemmArgs& a) {
    if (next >= row_tiles * token_tiles) return false;
    const BlockTile at(row_tiles, token_tiles, next);
    next += int(gridDim.x);
    row_tile = at.row;
    const auto* const from = reinterpret_cast<const std::int32_t*>(a.tiles + at.token);
    tile = {__ldcg(from), __ldcg(from + 1), __ldcg(from + 2)};
    return true;
  }
};

// One thread.
template <class Tile>
__device__ void copy_weights(const GemmArgs& a, const TmaWeights& weights,
                             const PersistentMemory<Tile>& memory, int k_tiles) {
  PersistentWalk<Tile> walk(a);
  StageRing<Tile::kStages> ring;
  while (walk.take(a)) {
    const CUtensorMap& first = weights.weight[walk.tile.expert].rows;
    const CUtensorMap& second = Tile::kSwiglu ? weights.up[walk.tile.expert].rows : first;
    const int row = walk.row_tile * Tile::kOutputs;
    const int second_row = row + (Tile::kSwiglu ? 0 : Tile::kHalfRows);
    for (int i = 0; i < k_tiles; ++i) {
      const std::uint32_t to = memory.weights(ring.stage), barrier = memory.full(ring.stage);
      ptx::barrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      ptx::barrier_arrive_expect(barrier, Tile::kWeightBytes);
      ptx::copy_box_once(to, first, i * Tile::kRowBytes, row, barrier);
      if constexpr (Tile::kHalves == 2)
        ptx::copy_box_once(to + Tile::kHalfBytes, second, i * Tile::kRowBytes, second_row, barrier);
      ring.advance();
    }
  }
}

// One thread, of tokens that come in boxes.
template <class Tile>
__device__ void copy_boxes(const GemmArgs& a, const CUtensorMap& x,
                           const PersistentMemory<Tile>& memory, int k_tiles) {
  PersistentWalk<Tile> walk(a);
  StageRing<Tile::kStages> ring;
  while (walk.take(a)) {
    const int boxes = (walk.tile.count + Tile::kBoxTokens - 1) / Tile::kBoxTokens;
    for (int i = 0; i < k_tiles; ++i) {
      const std::uint32_t to = memory.tokens(ring.stage), barrier = memory.full(ring.stage);
      ptx::barrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      ptx::barrier_arrive_expect(barrier, boxes * Tile::kBoxBytes);
      for (int b = 0; b < boxes; ++b)
        ptx::copy_box(to + b * Tile::kBoxBytes, x, i * Tile::kRowBytes,
                      walk.tile.first + b * Tile::kBoxTokens, barrier);
      ring.advance();
    }
  }
}

// A thread of the warps that copy tokens, by its Copies of a tile and a stage. Those of
// Copies::kLag stages go on while the next are started.
template <class Tile, class Copies>
__device__ void copy_tokens(const GemmArgs& a, const PersistentMemory<Tile>& memory, int k_tiles) {
  const int thread = int(threadIdx.x) - Tile::kMathThreads;
  Copies copies(a, memory, thread);
  StageRing<Tile::kStages> ring, oldest;
  int under_way = 0;
  // This warp's part of the oldest stage under way is there.
  const auto announce = [&] {
    ptx::fence_async_proxy();
    __syncwarp();
    if (thread % 32 == 0) ptx::barrier_arrive(memory.full(oldest.stage));
    oldest.advance();
  };
  PersistentWalk<Tile> walk(a);
  while (walk.take(a)) {
    copies.find_rows(walk.tile);
    for (int i = 0; i < k_tiles; ++i) {
      ptx::barrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      copies.copy_stage(i, ring.stage);
      ptx::copy_commit();
      ring.advance();
      if (++under_way > Copies::kLag) {
        ptx::copy_wait<Copies::kLag>();
        announce();
        --under_way;
      }
    }
  }
  ptx::copy_wait<0>();
  for (; under_way > 0; --under_way) announce();
}

// What such a thread does of tokens, if they do not come in boxes, and their scales; it counts from
// the first.
template <class Tile>
class TokenCopies {
 public:
  static constexpr int kLag = Tile::kStages - 2;

  __device__ TokenCopies(const GemmArgs& a, const PersistentMemory<Tile>& memory, int thread)
      : a_(a), memory_(memory), thread_(thread), chunk_(thread % 8), row0_(thread / 8) {}

  __device__ void find_rows(const TokenTile& tile) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) row_[j] = row_of(tile, row0_ + j * Tile::kTokenRowStep);
#pragma unroll
    for (int j = 0; j < kScales; ++j)
      scale_row_[j] = row_of(tile, thread_ + j * Tile::kTokenThreads);
  }

  __device__ void copy_stage(int i, int stage) const {
    const int column = i * Tile::kRowBytes + chunk_ * 16;
    const int bytes = max(0, min(16, a_.k * kSize - column));
    const std::uint8_t* const from =
        static_cast<const std::uint8_t*>(a_.x) + (bytes > 0 ? column : 0);
    const std::uint32_t to =
        memory_.tokens(stage) + row0_ * Tile::kRowBytes + ((chunk_ ^ (row0_ & 7)) << 4);
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (row_[j] >= 0)
        ptx::copy16(to + j * Tile::kTokenRowStep * Tile::kRowBytes,
                    from + row_[j] * a_.x_stride * kSize, bytes);
#pragma unroll
    for (int j = 0; j < kScales; ++j) {
      const int token = thread_ + j * Tile::kTokenThreads;
      const bool there = scale_row_[j] >= 0;
      if (token < Tile::kTokens)
        ptx::copy4(memory_.scale(stage, token),
                   a_.x_scale + (there ? i * a_.x_scale_stride + scale_row_[j] : 0), there ? 4 : 0);
    }
  }

 private:
  static constexpr int kLoads = Tile::kBoxes ? 0 : Tile::kTokens / Tile::kTokenRowStep;
  static constexpr int kScales =
      Tile::kGroupScales ? ceil_div<int>(Tile::kTokens, Tile::kTokenThreads) : 0;
  static constexpr int kSize = sizeof(typename Tile::Element);

  // -1: there is none.
  __device__ std::int32_t row_of(const TokenTile& tile, int i) const {
    if (i >= tile.count) return -1;
    return a_.rows ? a_.rows[tile.first + i] : tile.first + i;
  }

  const GemmArgs& a_;
  const PersistentMemory<Tile>& memory_;
  const int thread_, chunk_, row0_;
  std::int32_t row_[kLoads > 0 ? kLoads : 1], scale_row_[kScales > 0 ? kScales : 1];
};

}  // namespace ostro::cuda
