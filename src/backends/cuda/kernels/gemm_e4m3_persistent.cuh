// The e4m3 GEMM of experts that get few tokens each, in steps of more than a few: a kernel that
// gemm_e4m3_persistent*.cu instantiate.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N).
// Numbers:  bit by bit those of gemm_e4m3.cuh: the tensor core sums 128 columns, and these sums are
//           added in f32, in order, times the token's scale of them; with SwiGLU a token has one
//           scale for all columns, which multiplies the result.
// Grid:     a block for each multiprocessor, which walks the tiles of 256 weight rows (with SwiGLU:
//           128 of gate and the up rows of the same outputs) x kTokens tokens of one expert.
// Pipeline: a thread copies weights (TMA), two warps copy tokens (cp.async, which gathers rows),
//           both of the next tile too while the results of this one are stored: memory never waits
//           for a tile to end. Two warpgroups multiply, each 64 rows of each half.
// Traffic:  weights once for each tile of tokens, the first that L2 gives up; tokens once for each
//           tile of weight rows, from L2.
// Bound by: memory.
// Floor on an H100: n k bytes of each expert in use / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench f8e4m3, Mixtral 8x7B's shapes; of the floor): an
//           expert layer 476 us at 32 tokens (94 %), 485 us at 64 (92 %), 502 us at 128 (89 %); by
//           gemm_e4m3.cuh 522 and 524, and by gemm_tma.cuh 532 at 128.
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm_tma_tile.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

template <int kTokens_, int kStages_, bool kSwiglu_>
struct PersistentTile {
  static constexpr int kTokens = kTokens_, kStages = kStages_;
  static constexpr bool kSwiglu = kSwiglu_, kGroupScales = !kSwiglu;
  static constexpr int kK = 128;  // columns of a stage: bytes of a swizzle row
  static_assert(kK == quant::kE4m3Group);
  static constexpr int kGroups = 2, kHalfRows = 64 * kGroups;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : 2 * kHalfRows;
  static constexpr int kHalfBytes = kHalfRows * kK, kWeightBytes = 2 * kHalfBytes;
  static constexpr int kTokenBytes = kTokens * kK, kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kTokenBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  // Behind the stages: the tokens' scales of each, if they have some; results; barriers.
  static constexpr int kScales = kStages * kStageBytes;
  static constexpr int kSums = kScales + (kGroupScales ? kStages * kTokens * 4 : 0);
  static constexpr int kSumStride = kHalfRows + 4;  // lanes that share rows write other banks
  static constexpr int kBarriers = kSums + (kSwiglu ? kTokens * kSumStride * 4 : 0);
  static constexpr int kSharedBytes = kBarriers + kStages * 16 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  static constexpr int kMathThreads = 128 * kGroups, kMathWarps = kMathThreads / 32;
  static constexpr int kTokenWarps = 2, kTokenRowStep = 32 * kTokenWarps / 8;
  static_assert(kTokenRowStep % 8 == 0, "rows of one thread swizzle alike");
  static_assert(kTokens <= 32 * kTokenWarps, "a thread copies at most one scale");
  static constexpr int kThreads = kMathThreads + 32 + 32 * kTokenWarps;
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

// The tiles of a block.
template <class Tile>
struct PersistentWalk {
  int row_tiles, token_tiles, next;

  __device__ explicit PersistentWalk(const GemmArgs& a)
      : row_tiles((a.n + Tile::kOutputs - 1) / Tile::kOutputs),
        token_tiles(*a.tile_count),
        next(int(blockIdx.x)) {}
  // False if there is none left.
  __device__ bool take(const GemmArgs& a, int& row_tile, TokenTile& tile) {
    if (next >= row_tiles * token_tiles) return false;
    const BlockTile at(row_tiles, token_tiles, next);
    next += int(gridDim.x);
    row_tile = at.row;
    tile = a.tiles[at.token];
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
      ptx::copy_box_once(to, first, i * Tile::kK, row, barrier);
      ptx::copy_box_once(to + Tile::kHalfBytes, second, i * Tile::kK, second_row, barrier);
      ring.advance();
    }
  }
}

// The two warps that copy tokens and their scales; `thread` counts from the first of them.
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
  static constexpr int kLoads = Tile::kTokens / Tile::kTokenRowStep;

  __device__ void find_rows(const TokenTile& tile) {
    const auto row_of = [&](int i) -> std::int64_t {
      const int slot = tile.first + i;
      return a_.rows ? a_.rows[slot] : slot;
    };
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int row = row0_ + j * Tile::kTokenRowStep;
      from_[j] = row < tile.count ? static_cast<const std::uint8_t*>(a_.x) +
                                        row_of(row) * a_.x_stride + chunk_ * 16
                                  : nullptr;
    }
    if constexpr (Tile::kGroupScales)
      scale_ = thread_ < tile.count ? a_.x_scale + row_of(thread_) : nullptr;
  }

  __device__ void copy_stage(int i) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.empty(stage), ring_.parity ^ 1);
    const int bytes = max(0, min(16, a_.k - i * Tile::kK - chunk_ * 16));
    const std::uint32_t to =
        memory_.tokens(stage) + row0_ * Tile::kK + ((chunk_ ^ (row0_ & 7)) << 4);
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (from_[j])
        ptx::copy16(to + j * Tile::kTokenRowStep * Tile::kK,
                    from_[j] + (bytes > 0 ? std::int64_t(i) * Tile::kK : 0), bytes);
    if (thread_ < Tile::kTokens)
      ptx::copy4(memory_.scale(stage, thread_),
                 scale_ ? scale_ + i * a_.x_scale_stride : a_.x_scale, scale_ ? 4 : 0);
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
  const std::uint8_t* from_[kLoads];
  const float* scale_ = nullptr;
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
      float weight_scale[2][2];
      load_weight_scales(row_tile * Tile::kOutputs, tile.expert, weight_scale);
      float sum[2][kN / 2] = {}, part[2][kN / 2] = {};
      for (int i = 0; i < k_tiles; ++i) add_stage(sum, part);
      scale_sums(tile, weight_scale, sum);
      if constexpr (Tile::kSwiglu)
        store_hidden(row_tile, tile, sum);
      else
        store(row_tile * Tile::kOutputs, tile, sum);
    }
  }

 private:
  static constexpr int kN = Tile::kTokens;
  using Product = ptx::Wgmma<__nv_fp8_e4m3, kN>;

  // Of a fragment: its rows are row() and row() + 8 of a half, its columns 8 j + column() and + 1.
  __device__ int row() const { return group_ * 64 + warp_ % 4 * 16 + lane_ / 4; }
  __device__ int column() const { return lane_ % 4 * 2; }

  __device__ void load_weight_scales(int n0, int expert, float (&scale)[2][2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool is_up = Tile::kSwiglu && h == 1;
        const int output = n0 + row() + 8 * e + (is_up ? 0 : h * Tile::kHalfRows);
        scale[h][e] =
            output < a_.n ? (is_up ? weights_.up : weights_.weight)[expert].scale[output] : 0;
      }
  }

  // sum += the products of the next stage, for which `part` is room.
  __device__ void add_stage(float (&sum)[2][kN / 2], float (&part)[2][kN / 2]) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.full(stage), ring_.parity);
    const std::uint64_t tokens = ptx::swizzled_tile(memory_.tokens(stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint64_t rows = ptx::swizzled_tile(memory_.weights(stage) + h * Tile::kHalfBytes +
                                                    group_ * 64 * Tile::kK);
      Product::run_first(part[h], rows, tokens);
#pragma unroll
      for (int step = 1; step < Tile::kK / 32; ++step)
        Product::run(part[h], rows + 2 * step, tokens + 2 * step);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::hold_registers(part);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      Pack<float, 2> scale{{1, 1}};
      if constexpr (Tile::kGroupScales)
        scale = load_pack<2>(memory_.scales(stage) + 8 * j + column());
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum[h][4 * j + e] = fmaf(part[h][4 * j + e], scale.v[e % 2], sum[h][4 * j + e]);
    }
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(memory_.empty(stage));
    ring_.advance();
  }

  __device__ void scale_sums(const TokenTile& tile, const float (&weight_scale)[2][2],
                             float (&sum)[2][kN / 2]) const {
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) {
      float x_scale = 1;
      if constexpr (!Tile::kGroupScales) {
        const int token = e / 4 * 8 + column() + e % 2, slot = tile.first + token;
        if (token < tile.count) x_scale = a_.x_scale[a_.rows ? a_.rows[slot] : slot];
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) sum[h][e] = sum[h][e] * x_scale * weight_scale[h][e % 4 / 2];
    }
  }

  __device__ void store(int n0, const TokenTile& tile, const float (&sum)[2][kN / 2]) const {
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      const int j = e / 8, r = e / 4 % 2, h = e / 2 % 2, c = e % 2;
      const int token = 8 * j + column() + c, output = n0 + h * Tile::kHalfRows + row() + 8 * r;
      if (token < tile.count && output < a_.n)
        store_output(a_, tile.first + token, output, Pack<float, 1>{{sum[h][4 * j + 2 * r + c]}});
    }
  }

  __device__ void store_hidden(int row_tile, const TokenTile& tile,
                               const float (&sum)[2][kN / 2]) const {
    ptx::named_barrier_sync(1, Tile::kMathThreads);  // nobody reads those of the tile before
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) {
      const int token = e / 4 * 8 + column() + e % 2;
      if (token < tile.count)
        memory_.sums(token)[row() + e % 4 / 2 * 8] = swiglu(sum[0][e], sum[1][e]);
    }
    ptx::named_barrier_sync(1, Tile::kMathThreads);
    // A warp rounds a token's outputs, four a lane, with one scale.
    const int first = row_tile * Tile::kOutputs + lane_ * 4;
    for (int token = warp_; token < tile.count; token += Tile::kMathWarps) {
      auto value = load_pack<4>(memory_.sums(token) + lane_ * 4);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (first + j >= a_.n) value.v[j] = 0;
      const float most = warp_max(amax(value, quant::kE4m3LeastAmax));
      const std::int64_t slot = tile.first + token;
      // Rows of y are padded to 16 bytes.
      if (first < a_.n)
        *reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(a_.y) + slot * a_.y_stride +
                                          first) = to_e4m3(value, e4m3_factor(most));
      if (lane_ == 0) a_.y_scale[row_tile * a_.y_scale_stride + slot] = e4m3_scale(most);
    }
  }

  const GemmArgs& a_;
  const TmaWeights& weights_;
  const PersistentMemory<Tile>& memory_;
  const int lane_, warp_, group_;
  StageRing<Tile::kStages> ring_;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_e4m3_persistent_kernel(const GemmArgs a, const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw), shared = (raw + 1023) & ~1023u;
  const PersistentMemory<Tile> memory{shared_raw + (shared - raw), shared};
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      // Of weights, once for their bytes, and of each warp that copies tokens.
      ptx::barrier_init(memory.full(s), 1 + Tile::kTokenWarps);
      ptx::barrier_init(memory.empty(s), Tile::kMathWarps);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  begin_kernel();
  if (warp < Tile::kMathWarps)
    PersistentSums<Tile>(a, weights, memory).multiply(k_tiles);
  else if (warp > Tile::kMathWarps)
    TokenCopies<Tile>(a, memory, int(threadIdx.x) - Tile::kMathThreads - 32).copy(k_tiles);
  else if (threadIdx.x % 32 == 0)
    copy_weights(a, weights, memory, k_tiles);
}

template <class Tile>
void start_gemm_e4m3_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                                int processors) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens, "tiles of ", g.token_tile, " tokens, not ",
              Tile::kTokens);
  OSTRO_CHECK(host.weight.size() <= kMostTmaExperts, host.weight.size(), " experts");
  const GemmArgs& a = g.args;
  const auto matrix = [&](const WeightRef& w) {
    return TmaWeights::Matrix{swizzled_map(w.data, a.n, a.k, w.stride, Tile::kHalfRows), w.scale};
  };
  TmaWeights weights{};
  for (std::size_t e = 0; e < host.weight.size(); ++e) {
    weights.weight[e] = matrix(host.weight[e]);
    if (Tile::kSwiglu) weights.up[e] = matrix(host.up[e]);
  }
  const std::int64_t row_tiles = ceil_div<std::int64_t>(a.n, Tile::kOutputs);
  launch(stream,
         {.blocks = std::min<std::int64_t>(processors, row_tiles * a.max_tiles),
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_e4m3_persistent_kernel<Tile>, a, weights);
}

}  // namespace ostro::cuda
