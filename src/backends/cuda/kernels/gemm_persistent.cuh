// The GEMM of experts in steps of up to 256 tokens, of bf16 and f16 up to 384: a kernel that
// gemm_persistent_*.cu instantiate.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N).
// Numbers:  bit by bit those of gemm_e4m3.cuh and gemm_wgmma.cuh. Of 16-bit elements the tensor
//           core sums all of K. Of e4m3 it sums 128 columns, and these sums are added in f32, in
//           order, times the token's scale of them; with SwiGLU a token has one scale for all
//           columns, which multiplies the result.
// Grid:     a block for each multiprocessor, which walks the tiles of 256 weight rows (with SwiGLU:
//           128 of gate and the up rows of the same outputs; of 64 where wider ones are too few) x
//           kTokens tokens of one expert.
// Pipeline: a thread copies weights (TMA), two warps copy tokens (cp.async, which gathers rows), or
//           of 96 tokens of e4m3 a thread their boxes (TMA; their rows were gathered before), all
//           of the next tile too while the results of this one are stored: memory never waits for
//           a tile to end. Two warpgroups multiply, each 64 rows of each half. Down's first weights
//           come while gate and up end, whose kernel has the list of tiles from its predecessor.
// Traffic:  weights once for each tile of tokens, the first that L2 gives up; tokens once for each
//           tile of weight rows, from L2.
// Bound by: memory.
// Floor on an H100: the bytes of each expert in use / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes; of the floor): an expert
//           layer of e4m3 132 us at 1 token (85 %), 415 at 8 (94 %), 479 at 32 (93 %), 485 at 64
//           (92 %), 494 at 128 (90 %), 545 at 256 (82 %); of bf16 244 us at 1 (92 %), 814 at 8
//           (96 %), 926 at 32 (97 %), 930 at 64 (96 %), 960 at 128 (93 %), 1.01 ms at 256 (88 %).
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm_tma_tile.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

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
  static constexpr int kTokenBlocks = 1;  // [kRowBytes of columns][token] in a stage
  static_assert(kTokenBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  // Behind the stages: the tokens' scales of each, if they have some; results; barriers.
  static constexpr int kScales = kStages * kStageBytes;
  static constexpr int kSums = kScales + (kGroupScales ? kStages * kTokens * 4 : 0);
  // Results lie there for so many tokens at a time.
  static constexpr int kSumTokens = kTokens > 64 ? kTokens / 2 : kTokens;
  static constexpr int kSumStride = kHalfRows + 4;  // lanes that share rows write other banks
  static constexpr int kBarriers = kSums + (kSwiglu ? kSumTokens * kSumStride * 4 : 0);
  static constexpr int kSharedBytes = kBarriers + kStages * 16 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // Many tokens of e4m3, whose products take less time, come by the copy engine, in boxes: they lie
  // in a row.
  static constexpr bool kBoxes = kE4m3 && kTokens > kLargestTileWithoutTma;
  static constexpr int kBoxTokens = 32, kBoxBytes = kBoxTokens * kRowBytes;
  static_assert(!kBoxes || kTokens % kBoxTokens == 0);
  // The warpgroups that multiply, and one that copies: a thread weights, two warps tokens; or a
  // thread their boxes, and a warp their scales if each stage has some.
  static constexpr int kMathThreads = 128 * kGroups, kMathWarps = kMathThreads / 32;
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
struct PersistentMemory {
  unsigned char* data;
  std::uint32_t shared;  // its address

  __device__ std::uint32_t weights(int stage) const { return shared + stage * Tile::kStageBytes; }
  __device__ std::uint32_t tokens(int stage) const { return weights(stage) + Tile::kWeightBytes; }
  __device__ std::uint32_t scale(int stage, int token) const {
    return shared + Tile::kScales + (stage * Tile::kTokens + token) * 4;
  }
  __device__ const float* scales(int stage) const {
    return reinterpret_cast<const float*>(data + Tile::kScales) + stage * Tile::kTokens;
  }
  __device__ float* sums(int token) const {
    return reinterpret_cast<float*>(data + Tile::kSums) + token * Tile::kSumStride;
  }
  __device__ std::uint32_t full(int stage) const { return shared + Tile::kBarriers + 16 * stage; }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
};

// The tiles of a block. The list is read from L2: it may be newer than what an earlier kernel has
// left in L1.
template <class Tile>
struct PersistentWalk {
  int row_tiles, token_tiles, next;

  __device__ explicit PersistentWalk(const GemmArgs& a)
      : row_tiles((a.n + Tile::kOutputs - 1) / Tile::kOutputs),
        token_tiles(__ldcg(a.tile_count)),
        next(int(blockIdx.x)) {}
  // False if there is none left.
  __device__ bool take(const GemmArgs& a, int& row_tile, TokenTile& tile) {
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
  int row_tile;
  TokenTile tile;
  while (walk.take(a, row_tile, tile)) {
    const CUtensorMap& first = weights.weight[tile.expert].rows;
    const CUtensorMap& second = Tile::kSwiglu ? weights.up[tile.expert].rows : first;
    const int row = row_tile * Tile::kOutputs;
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
  int row_tile;
  TokenTile tile;
  while (walk.take(a, row_tile, tile)) {
    const int boxes = (tile.count + Tile::kBoxTokens - 1) / Tile::kBoxTokens;
    for (int i = 0; i < k_tiles; ++i) {
      const std::uint32_t to = memory.tokens(ring.stage), barrier = memory.full(ring.stage);
      ptx::barrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
      ptx::barrier_arrive_expect(barrier, boxes * Tile::kBoxBytes);
      for (int b = 0; b < boxes; ++b)
        ptx::copy_box(to + b * Tile::kBoxBytes, x, i * Tile::kRowBytes,
                      tile.first + b * Tile::kBoxTokens, barrier);
      ring.advance();
    }
  }
}

// The warps that copy tokens, if they do not come in boxes, and their scales; `thread` counts from
// the first of them.
template <class Tile>
class TokenCopies {
 public:
  __device__ TokenCopies(const GemmArgs& a, const PersistentMemory<Tile>& memory, int thread)
      : a_(a), memory_(memory), thread_(thread), chunk_(thread % 8), row0_(thread / 8) {}

  __device__ void copy(int k_tiles) {
    PersistentWalk<Tile> walk(a_);
    int row_tile;
    TokenTile tile;
    while (walk.take(a_, row_tile, tile)) {
      find_rows(tile);
      for (int i = 0; i < k_tiles; ++i) copy_stage(i);
    }
    ptx::copy_wait<0>();
    for (; under_way_ > 0; --under_way_) announce();
  }

 private:
  // The copies of so many stages go on while the next are started.
  static constexpr int kLag = Tile::kStages - 2;
  static constexpr int kLoads = Tile::kBoxes ? 0 : Tile::kTokens / Tile::kTokenRowStep;
  static constexpr int kScales =
      Tile::kGroupScales ? ceil_div<int>(Tile::kTokens, Tile::kTokenThreads) : 0;
  static constexpr int kSize = sizeof(typename Tile::Element);

  // -1: there is none.
  __device__ std::int32_t row_of(const TokenTile& tile, int i) const {
    if (i >= tile.count) return -1;
    return a_.rows ? a_.rows[tile.first + i] : tile.first + i;
  }

  __device__ void find_rows(const TokenTile& tile) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) row_[j] = row_of(tile, row0_ + j * Tile::kTokenRowStep);
#pragma unroll
    for (int j = 0; j < kScales; ++j)
      scale_row_[j] = row_of(tile, thread_ + j * Tile::kTokenThreads);
  }

  __device__ void copy_stage(int i) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.empty(stage), ring_.parity ^ 1);
#pragma unroll
    for (int b = 0; b < Tile::kTokenBlocks; ++b) {
      const int column = (i * Tile::kTokenBlocks + b) * Tile::kRowBytes + chunk_ * 16;
      const int bytes = max(0, min(16, a_.k * kSize - column));
      const std::uint8_t* const from =
          static_cast<const std::uint8_t*>(a_.x) + (bytes > 0 ? column : 0);
      const std::uint32_t to = memory_.tokens(stage) + b * Tile::kTokens * Tile::kRowBytes +
                               row0_ * Tile::kRowBytes + ((chunk_ ^ (row0_ & 7)) << 4);
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        if (row_[j] >= 0)
          ptx::copy16(to + j * Tile::kTokenRowStep * Tile::kRowBytes,
                      from + row_[j] * a_.x_stride * kSize, bytes);
    }
#pragma unroll
    for (int j = 0; j < kScales; ++j) {
      const int token = thread_ + j * Tile::kTokenThreads;
      const bool there = scale_row_[j] >= 0;
      if (token < Tile::kTokens)
        ptx::copy4(memory_.scale(stage, token),
                   a_.x_scale + (there ? i * a_.x_scale_stride + scale_row_[j] : 0), there ? 4 : 0);
    }
    ptx::copy_commit();
    ring_.advance();
    if (++under_way_ > kLag) {
      ptx::copy_wait<kLag>();
      announce();
      --under_way_;
    }
  }

  // This warp's part of the oldest stage under way is there.
  __device__ void announce() {
    ptx::fence_async_proxy();
    __syncwarp();
    if (thread_ % 32 == 0) ptx::barrier_arrive(memory_.full(oldest_.stage));
    oldest_.advance();
  }

  const GemmArgs& a_;
  const PersistentMemory<Tile>& memory_;
  const int thread_, chunk_, row0_;
  StageRing<Tile::kStages> ring_, oldest_;
  int under_way_ = 0;
  std::int32_t row_[kLoads > 0 ? kLoads : 1], scale_row_[kScales > 0 ? kScales : 1];
};

// A thread of the warpgroups that multiply.
template <class Tile>
class PersistentSums {
 public:
  __device__ PersistentSums(const GemmArgs& a, const TmaWeights& weights,
                            const PersistentMemory<Tile>& memory)
      : a_(a),
        weights_(weights),
        memory_(memory),
        lane_(int(threadIdx.x) % 32),
        warp_(int(threadIdx.x) / 32),
        // The same in all lanes, which the compiler is to know: descriptors are warp-wide.
        group_(__shfl_sync(~0u, int(threadIdx.x) / 128, 0)) {}

  __device__ void multiply(int k_tiles) {
    PersistentWalk<Tile> walk(a_);
    int row_tile;
    TokenTile tile;
    while (walk.take(a_, row_tile, tile)) {
      Sums sum = {};
      if constexpr (Tile::kE4m3) {
        float weight_scale[kHalves][2];
        load_weight_scales(row_tile * Tile::kOutputs, tile.expert, weight_scale);
        Sums part = {};
        for (int i = 0; i < k_tiles; ++i) add_e4m3_stage(sum, part);
        scale_sums(tile, weight_scale, sum);
      } else {
        for (int i = 0; i < k_tiles; ++i) add_stage(sum);
      }
      if constexpr (Tile::kSwiglu)
        store_hidden(row_tile, tile, sum);
      else
        store(row_tile * Tile::kOutputs, tile, sum);
    }
  }

 private:
  static constexpr int kN = Tile::kTokens, kHalves = Tile::kHalves;
  static constexpr int kSteps = Tile::kRowBytes / 32;
  using Product = ptx::Wgmma<typename Tile::Element, kN>;
  using Sums = float[kHalves][kN / 2];

  // Of a fragment: its rows are row() and row() + 8 of a half, its columns 8 j + column() and + 1.
  __device__ int row() const { return group_ * 64 + warp_ % 4 * 16 + lane_ / 4; }
  __device__ int column() const { return lane_ % 4 * 2; }

  __device__ std::uint64_t rows(int stage, int half) const {
    return ptx::swizzled_tile(memory_.weights(stage) + half * Tile::kHalfBytes +
                              group_ * 64 * Tile::kRowBytes);
  }
  __device__ void release(int stage) {
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(memory_.empty(stage));
    ring_.advance();
  }

  // sum += the products of the next stage.
  __device__ void add_stage(Sums& sum) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.full(stage), ring_.parity);
    const std::uint64_t tokens = ptx::swizzled_tile(memory_.tokens(stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        Product::run(sum[h], rows(stage, h) + 2 * step, tokens + 2 * step);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    release(stage);
  }

  __device__ void load_weight_scales(int n0, int expert, float (&scale)[kHalves][2]) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool is_up = Tile::kSwiglu && h == 1;
        const int output = n0 + row() + 8 * e + (is_up ? 0 : h * Tile::kHalfRows);
        scale[h][e] =
            output < a_.n ? (is_up ? weights_.up : weights_.weight)[expert].scale[output] : 0;
      }
  }

  // The products of a stage's columns with a half of the weight rows.
  __device__ void start_half(int stage, int half, float (&part)[kN / 2]) const {
    using Product = ptx::Wgmma<typename Tile::Element, kN>;
    const std::uint64_t weights = rows(stage, half);
    const std::uint64_t tokens = ptx::swizzled_tile(memory_.tokens(stage));
    ptx::wgmma_fence();
    Product::run_first(part, weights, tokens);
#pragma unroll
    for (int step = 1; step < kSteps; ++step)
      Product::run(part, weights + 2 * step, tokens + 2 * step);
    ptx::wgmma_commit();
  }

  // They are there.
  __device__ void add_half(int stage, float (&part)[kN / 2], float (&sum)[kN / 2]) const {
    ptx::hold_registers(part);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      Pack<float, 2> scale{{1, 1}};
      if constexpr (Tile::kGroupScales)
        scale = load_pack<2>(memory_.scales(stage) + 8 * j + column());
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sum[4 * j + e] = fmaf(part[4 * j + e], scale.v[e % 2], sum[4 * j + e]);
    }
  }

  // The same of e4m3, with `part` as room for what the tensor core sums: one half is added while
  // the other is under way.
  __device__ void add_e4m3_stage(Sums& sum, Sums& part) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.full(stage), ring_.parity);
    start_half(stage, 0, part[0]);
    if constexpr (kHalves == 2) {
      start_half(stage, 1, part[1]);
      ptx::wgmma_wait<1>();
      add_half(stage, part[0], sum[0]);
    }
    ptx::wgmma_wait<0>();
    add_half(stage, part[kHalves - 1], sum[kHalves - 1]);
    release(stage);
  }

  __device__ void scale_sums(const TokenTile& tile, const float (&weight_scale)[kHalves][2],
                             Sums& sum) const {
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) {
      float x_scale = 1;
      if constexpr (!Tile::kGroupScales) {
        const int token = e / 4 * 8 + column() + e % 2, slot = tile.first + token;
        if (token < tile.count) x_scale = a_.x_scale[a_.rows ? a_.rows[slot] : slot];
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        sum[h][e] = sum[h][e] * x_scale * weight_scale[h][e % 4 / 2];
    }
  }

  __device__ void store(int n0, const TokenTile& tile, const Sums& sum) const {
#pragma unroll
    for (int e = 0; e < kHalves * kN / 2; ++e) {
      const int c = e % 2, h = e / 2 % kHalves, r = e / 2 / kHalves % 2, j = e / 4 / kHalves;
      const int token = 8 * j + column() + c, output = n0 + h * Tile::kHalfRows + row() + 8 * r;
      if (token < tile.count && output < a_.n)
        store_output(a_, tile.first + token, output, Pack<float, 1>{{sum[h][4 * j + 2 * r + c]}});
    }
  }

  // Through shared memory, from which a warp takes a token's outputs, four a lane.
  __device__ void store_hidden(int row_tile, const TokenTile& tile, const Sums& sum) const {
    const int column0 = row_tile * Tile::kOutputs + lane_ * 4;
#pragma unroll
    for (int first = 0; first < kN; first += Tile::kSumTokens) {
      if (first >= tile.count) break;
      ptx::named_barrier_sync(1, Tile::kMathThreads);  // nobody reads those before
#pragma unroll
      for (int i = 0; i < Tile::kSumTokens / 2; ++i) {
        const int e = first / 2 + i, token = e / 4 * 8 + column() + e % 2;
        if (token < tile.count)
          memory_.sums(token - first)[row() + e % 4 / 2 * 8] = swiglu(sum[0][e], sum[1][e]);
      }
      ptx::named_barrier_sync(1, Tile::kMathThreads);
      const int count = min(tile.count - first, Tile::kSumTokens);
      for (int token = warp_; token < count; token += Tile::kMathWarps) {
        const auto value = load_pack<4>(memory_.sums(token) + lane_ * 4);
        const std::int64_t slot = tile.first + first + token;
        if constexpr (Tile::kE4m3)
          store_e4m3(slot, row_tile, column0, value);
        else
          store_outputs(a_, slot, column0, value);
      }
    }
  }

  // With one scale for the outputs of the tile.
  __device__ void store_e4m3(std::int64_t slot, int row_tile, int column,
                             Pack<float, 4> value) const {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column + j >= a_.n) value.v[j] = 0;
    const float most = warp_max(amax(value, quant::kE4m3LeastAmax));
    // Rows of y are padded to 16 bytes.
    if (column < a_.n)
      *reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(a_.y) + slot * a_.y_stride +
                                        column) = to_e4m3(value, e4m3_factor(most));
    if (lane_ == 0) a_.y_scale[row_tile * a_.y_scale_stride + slot] = e4m3_scale(most);
  }

  const GemmArgs& a_;
  const TmaWeights& weights_;
  const PersistentMemory<Tile>& memory_;
  const int lane_, warp_, group_;
  StageRing<Tile::kStages> ring_;
};

// listed: the tiles were listed by a kernel before the predecessor, which has ended. x: the tokens,
// if they come in boxes.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_persistent_kernel(const GemmArgs a, const bool listed,
                           const __grid_constant__ CUtensorMap x,
                           const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw), shared = (raw + 1023) & ~1023u;
  const PersistentMemory<Tile> memory{shared_raw + (shared - raw), shared};
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      // Of weights, once for their bytes, of boxes likewise, and of each warp that copies tokens.
      ptx::barrier_init(memory.full(s), 1 + Tile::kBoxes + Tile::kTokenWarps);
      ptx::barrier_init(memory.empty(s), Tile::kMathWarps);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  if (warp < Tile::kMathWarps) {
    if constexpr (Tile::kSharesRegisters) ptx::more_registers<Tile::kMathRegisters>();
    begin_kernel();
    PersistentSums<Tile>(a, weights, memory).multiply(k_tiles);
    return;
  }
  if constexpr (Tile::kSharesRegisters) ptx::fewer_registers<Tile::kCopyRegisters>();
  const int copy_warp = warp - Tile::kMathWarps;
  if (copy_warp < Tile::kTokenWarps) {
    begin_kernel();
    TokenCopies<Tile>(a, memory, int(threadIdx.x) - Tile::kMathThreads).copy(k_tiles);
  } else if (copy_warp == Tile::kTokenWarps && threadIdx.x % 32 == 0) {
    // Weights do not change: the first of them come while the predecessor ends.
    if (!listed) begin_kernel();
    copy_weights(a, weights, memory, k_tiles);
  } else if (Tile::kBoxes && copy_warp == 3 && threadIdx.x % 32 == 0) {
    begin_kernel();
    copy_boxes(a, x, memory, k_tiles);
  }
}

template <class Tile>
void start_gemm_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                           int processors) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens, "tiles of ", g.token_tile, " tokens, not ",
              Tile::kTokens);
  const GemmArgs& a = g.args;
  OSTRO_CHECK(!Tile::kBoxes || !a.rows, "tiles of ", g.token_tile, " tokens lie in a row");
  constexpr std::int64_t kSize = sizeof(typename Tile::Element);
  CUtensorMap x{};
  if constexpr (Tile::kBoxes)
    x = swizzled_map(a.x, a.slots, a.k * kSize, a.x_stride * kSize, Tile::kBoxTokens);
  const std::int64_t row_tiles = ceil_div<std::int64_t>(a.n, Tile::kOutputs);
  launch(stream,
         {.blocks = std::min<std::int64_t>(processors, row_tiles * a.max_tiles),
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_persistent_kernel<Tile>, a, g.listed, x, tma_weights<Tile>(a, host));
}

// Few rows are in use: tiles of 256 weight rows, without an activation, leave processors idle.
inline bool few_wide_tiles(const Gemm& g, const HostWeights& host, int processors) {
  const auto experts = std::int64_t(host.weight.size());
  return 4 * ceil_div<std::int64_t>(g.args.n, 256) * std::min(g.args.slots, experts) <
         3 * processors;
}

// bf16 and f16.
template <class T>
void gemm_persistent_16(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  switch (g.token_tile) {
    case 8:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 8, 6, true>>(stream, g, w, processors)
             : few_wide_tiles(g, w, processors)
                 ? start_gemm_persistent<PersistentTile<T, 8, 24, false, 1, 1>>(stream, g, w,
                                                                                processors)
                 : start_gemm_persistent<PersistentTile<T, 8, 6, false>>(stream, g, w, processors);
    case 16:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 16, 6, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 16, 6, false>>(stream, g, w, processors);
    case 32:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 32, 5, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 32, 6, false>>(stream, g, w, processors);
    case 64:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 64, 4, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 64, 5, false>>(stream, g, w, processors);
    case 128:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 128, 4, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 128, 4, false>>(stream, g, w,
                                                                           processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
