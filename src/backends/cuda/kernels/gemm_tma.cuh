// The GEMM of prompts: a kernel that gemm_tma_*.cu instantiate.
//
// Roles:    tokens are the rows (M) of the product, weights its columns (N), so that a token's
//           scale belongs to a row of a fragment, and the 128 outputs that share a scale of an
//           e4m3 result to four lanes: sums go from registers to memory.
// Numbers:  bit by bit those of gemm_e4m3.cuh and gemm_wgmma.cuh, whatever the operands' roles. Of
//           e4m3 the tensor core sums 128 columns in four steps of 32, and these sums are added in
//           f32 in order; of bf16 and f16 it sums all columns in steps of 16.
// Grid:     as many blocks as multiprocessors, in clusters of two that walk one list of tiles of
//           2 x 256 weight rows x 128 tokens. With SwiGLU the 256 rows are 128 gate rows and the up
//           rows of the same outputs.
// Pipeline: one thread copies boxes (TMA, 128-byte swizzle) into four stages of 128 bytes of K, of
//           the next tile too while the results of this one are stored; half of the tokens each for
//           both blocks of the cluster. Two warpgroups multiply 64 tokens each. Of e4m3 they take
//           128 weight rows at a time: while one adds its sums in f32, the tensor core works for
//           the other.
// Traffic:  40 KB from L2 for each 8.4 MFLOP of e4m3, 4.2 of bf16.
// Bound by: memory up to about 240 tokens an expert, then tensor cores.
// Floor on an H100: weights' bytes / 3.15e12 s; 2 tokens n k / 1385e12 s (e4m3), 757e12 (bf16).
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes; of the floor):
//           e4m3: qkv 124 us at 2048 tokens (60 %), 478 us at 8192 (62 %); all of an expert layer
//           518 us at 128 (86 %), 748 us at 512 (60 %), 1.69 ms at 2048 (62 %), 6.22 ms at 8192
//           (67 %). bf16: qkv 169 us at 2048 (81 %), 663 us at 8192 (82 %); experts 972 us at 128
//           (92 %), 1.34 ms at 512 (67 %), 3.50 ms at 2048 (55 %), 9.45 ms at 8192 (81 %).
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mbarrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/tma.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

template <class T, bool kSwiglu_, bool kGroupScales_>
struct TmaTile {
  using Element = T;
  static constexpr bool kE4m3 = std::is_same_v<T, __nv_fp8_e4m3>;
  static constexpr bool kSwiglu = kSwiglu_, kGroupScales = kGroupScales_;
  static_assert(kE4m3 || !kGroupScales);
  static constexpr int kCluster = 2;
  static constexpr int kRowBytes = 128;  // of a stage: a swizzle row
  static constexpr int kK = kRowBytes / int(sizeof(T));
  static_assert(!kE4m3 || kK == quant::kE4m3Group);
  static constexpr int kGroups = 2, kGroupTokens = 64, kTokens = kGroups * kGroupTokens;
  static_assert(kTokens == kTmaTile);
  static constexpr int kHalfRows = 128, kRows = 2 * kHalfRows;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : kRows;
  static_assert(!kSwiglu || kOutputs == quant::kE4m3Group);
  static constexpr int kHalfBytes = kHalfRows * kRowBytes, kWeightBytes = kRows * kRowBytes;
  static constexpr int kGroupBytes = kGroupTokens * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  static constexpr int kStages = 4;
  static constexpr int kSharedBytes = kStages * (kStageBytes + 16) + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  // The multiplying warpgroups, and one of which a thread copies.
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kMathRegisters = 240, kCopyRegisters = 24;
  static_assert(128 * (kGroups * kMathRegisters + kCopyRegisters) <= 65536);
  static constexpr int kRaster = BlockTile::kRaster / kCluster;
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
  int row_groups, token_tiles, next;

  __device__ explicit TileWalk(const GemmArgs& a) {
    const int row_tiles = (a.n + Tile::kOutputs - 1) / Tile::kOutputs;
    row_groups = (row_tiles + Tile::kCluster - 1) / Tile::kCluster;
    token_tiles = a.tiles ? *a.tile_count : a.max_tiles;
    next = int(blockIdx.x) / Tile::kCluster;
  }
  // False if there is none left.
  __device__ bool take(const GemmArgs& a, int& row_tile, TokenTile& tile) {
    if (next >= row_groups * token_tiles) return false;
    const BlockTile at(row_groups, token_tiles, next, Tile::kRaster);
    next += int(gridDim.x) / Tile::kCluster;
    row_tile = at.row * Tile::kCluster + int(blockIdx.x) % Tile::kCluster;
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
    return weights(stage) + Tile::kWeightBytes + group * Tile::kGroupBytes;
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
  // A block copies the tokens of one warpgroup, for both blocks.
  static_assert(Tile::kCluster == 2 && Tile::kGroups == 2);
  constexpr std::uint16_t kBoth = 3;
  const int rank = int(blockIdx.x) % Tile::kCluster;
  while (walk.take(a, row_tile, tile)) {
    const CUtensorMap& first = weights.weight[tile.expert].rows;
    const CUtensorMap& second = Tile::kSwiglu ? weights.up[tile.expert].rows : first;
    const int first_row = row_tile * Tile::kOutputs;
    const int second_row = first_row + (Tile::kSwiglu ? 0 : Tile::kHalfRows);
    // Warpgroups without tokens need none.
    const int groups = tile.count > Tile::kGroupTokens ? 2 : 1;
    for (int i = 0; i < k_tiles; ++i) {
      const int column = i * Tile::kRowBytes;
      const std::uint32_t to = stages.weights(ring.stage), barrier = stages.full(ring.stage);
      ptx::barrier_wait(stages.empty(ring.stage), ring.parity ^ 1);
      // What comes from the other block too; it may have come already.
      ptx::barrier_arrive_expect(barrier, Tile::kWeightBytes + groups * Tile::kGroupBytes);
      ptx::copy_box(to, first, column, first_row, barrier);
      ptx::copy_box(to + Tile::kHalfBytes, second, column, second_row, barrier);
      if (rank < groups)
        ptx::copy_box_to(kBoth, stages.tokens(ring.stage, rank), x, column,
                         tile.first + rank * Tile::kGroupTokens, barrier);
      ring.advance();
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_tma_kernel(const GemmArgs a, const __grid_constant__ CUtensorMap x,
                    const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const Stages<Tile> stages{(ptx::shared_address(shared_raw) + 1023) & ~1023u};
  const int group = int(threadIdx.x) / 128, warp = int(threadIdx.x) / 32 % 4;
  const int lane = int(threadIdx.x) % 32;
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;

  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      ptx::barrier_init(stages.full(s), 1);
      // Each warp of each block of the cluster arrives once in a phase.
      ptx::barrier_init(stages.empty(s), 4 * Tile::kGroups * Tile::kCluster);
    }
    ptx::barrier_init_fence();
  }
  ptx::cluster_sync();
  begin_kernel();

  if (group == Tile::kGroups) {
    ptx::fewer_registers<Tile::kCopyRegisters>();
    if (warp == 0 && lane == 0) copy_tiles<Tile>(a, x, weights, stages, k_tiles);
    __syncwarp();
  } else {
    ptx::more_registers<Tile::kMathRegisters>();
    // Of a fragment: its rows (tokens) are row and row + 8, its columns (weight rows) 8 j + column
    // and + 1.
    const int row = group * Tile::kGroupTokens + warp * 16 + lane / 4, column = lane % 4 * 2;
    TileWalk<Tile> walk(a);
    StageRing<Tile::kStages> ring;
    int row_tile;
    TokenTile tile;
    const auto release = [&](int stage) {
      __syncwarp();
      if (lane < Tile::kCluster) ptx::barrier_arrive(stages.empty(stage), lane);
    };
    bool more = walk.take(a, row_tile, tile);
    while (more) {
      const int n0 = row_tile * Tile::kOutputs;
      const TokenTile now = tile;
      more = walk.take(a, row_tile, tile);  // loads while this one is multiplied
      if (now.count <= group * Tile::kGroupTokens) {
        for (int i = 0; i < k_tiles; ++i) {
          ptx::barrier_wait(stages.full(ring.stage), ring.parity);
          release(ring.stage);
          ring.advance();
        }
        continue;
      }
      const bool there[2] = {row < now.count, row + 8 < now.count};
      const std::int64_t slot = now.first + row;
      float sum[128] = {};  // of 128 weight rows, and of the other 128

      if constexpr (Tile::kE4m3) {
        // Scales of this stage's columns, and of the next's.
        float x_scale[2] = {1, 1}, next_scale[2] = {0, 0};
        const auto load_scales = [&](int i) {
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (there[r]) next_scale[r] = a.x_scale[i * a.x_scale_stride + slot + 8 * r];
        };
        load_scales(0);
        float part[64] = {};
        for (int i = 0; i < k_tiles; ++i) {
          if constexpr (Tile::kGroupScales) {
            x_scale[0] = next_scale[0];
            x_scale[1] = next_scale[1];
            if (i + 1 < k_tiles) load_scales(i + 1);
          }
          const std::uint64_t tokens = ptx::swizzled_tile(stages.tokens(ring.stage, group));
          ptx::barrier_wait(stages.full(ring.stage), ring.parity);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const std::uint64_t rows =
                ptx::swizzled_tile(stages.weights(ring.stage) + h * Tile::kHalfBytes);
            using Product = ptx::Wgmma<__nv_fp8_e4m3, Tile::kHalfRows>;
            ptx::wgmma_fence();
            Product::run_first(part, tokens, rows);
#pragma unroll
            for (int step = 1; step < 4; ++step)
              Product::run(part, tokens + 2 * step, rows + 2 * step);
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
            if (h == 1) release(ring.stage);
#pragma unroll
            for (int e = 0; e < 64; ++e)
              sum[64 * h + e] = fmaf(part[e], x_scale[e % 4 / 2], sum[64 * h + e]);
          }
          ring.advance();
        }

        const float* const scale = weights.weight[now.expert].scale;
        const float* const up_scale = Tile::kSwiglu ? weights.up[now.expert].scale : nullptr;
        if constexpr (Tile::kGroupScales) next_scale[0] = next_scale[1] = 1;
#pragma unroll
        for (int e = 0; e < 128; ++e) {
          const bool is_up = Tile::kSwiglu && e >= 64;
          const int output = n0 + (is_up ? e - 64 : e) / 4 * 8 + column + e % 2;
          const float weight_scale = output < a.n ? __ldg((is_up ? up_scale : scale) + output) : 0;
          sum[e] = sum[e] * next_scale[e % 4 / 2] * weight_scale;
        }
      } else {
        int last = 0;
        for (int i = 0; i < k_tiles; ++i) {
          const std::uint64_t tokens = ptx::swizzled_tile(stages.tokens(ring.stage, group));
          const std::uint64_t rows = ptx::swizzled_tile(stages.weights(ring.stage));
          ptx::barrier_wait(stages.full(ring.stage), ring.parity);
          ptx::wgmma_fence();
#pragma unroll
          for (int step = 0; step < 4; ++step)
            ptx::Wgmma<typename Tile::Element, Tile::kRows>::run(sum, tokens + 2 * step,
                                                                 rows + 2 * step);
          ptx::wgmma_commit();
          ptx::wgmma_wait<1>();  // the products of the stage before
          if (i > 0) release(last);
          last = ring.stage;
          ring.advance();
        }
        ptx::wgmma_wait<0>();
        if (k_tiles > 0) release(last);
      }

      if constexpr (Tile::kSwiglu) {
#pragma unroll
        for (int e = 0; e < 64; ++e) {
          const int output = n0 + e / 4 * 8 + column + e % 2;
          sum[e] = output < a.n ? swiglu(sum[e], sum[64 + e]) : 0;
        }
      }
      if constexpr (Tile::kSwiglu && Tile::kE4m3) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float most = quant::kE4m3LeastAmax;
#pragma unroll
          for (int j = 0; j < 16; ++j)
            most = fmaxf(most, fmaxf(fabsf(sum[4 * j + 2 * r]), fabsf(sum[4 * j + 2 * r + 1])));
          // The four lanes of a row have its 128 outputs.
          for (int d = 1; d < 4; d *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
          if (!there[r]) continue;
          const float factor = e4m3_factor(most);
          std::uint8_t* const y = static_cast<std::uint8_t*>(a.y) + (slot + 8 * r) * a.y_stride;
          // Rows of y are padded to 16 bytes.
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            const int output = n0 + 8 * j + column;
            if (output < a.n)
              *reinterpret_cast<std::uint16_t*>(y + output) = __nv_cvt_float2_to_fp8x2(
                  make_float2(sum[4 * j + 2 * r] * factor, sum[4 * j + 2 * r + 1] * factor),
                  __NV_SATFINITE, __NV_E4M3);
          }
          if (lane % 4 == 0 && n0 < a.n)
            a.y_scale[n0 / Tile::kOutputs * a.y_scale_stride + slot + 8 * r] = e4m3_scale(most);
        }
      } else {
        const bool whole = a.y_in_packs && n0 + Tile::kOutputs <= a.n;
        const auto store = [&]<class Y>(Y*) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            if (!there[r]) continue;
            const int first = n0 + column;
            Y* const y = static_cast<Y*>(a.y) + (slot + 8 * r) * a.y_stride + first;
#pragma unroll
            for (int j = 0; j < Tile::kOutputs / 8; ++j) {
              const Pack<Y, 2> two{
                  {rounded_to<Y>(sum[4 * j + 2 * r]), rounded_to<Y>(sum[4 * j + 2 * r + 1])}};
              if (whole) {
                store_pack(y + 8 * j, two);
              } else {
                if (first + 8 * j < a.n) y[8 * j] = two.v[0];
                if (first + 8 * j + 1 < a.n) y[8 * j + 1] = two.v[1];
              }
            }
          }
        };
        if (a.y_type == DType::f32)
          store(static_cast<float*>(nullptr));
        else if (a.y_type == DType::bf16)
          store(static_cast<__nv_bfloat16*>(nullptr));
        else
          store(static_cast<__half*>(nullptr));
      }
    }
  }
  // No block ends while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

template <class Tile>
void start_gemm_tma(cudaStream_t stream, const Gemm& g, const HostWeights& host, int processors) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens && !g.args.rows, "tiles of ", g.token_tile,
              " tokens, not ", Tile::kTokens);
  OSTRO_CHECK(host.weight.size() <= kMostTmaExperts, host.weight.size(), " experts");
  const GemmArgs& a = g.args;
  constexpr std::int64_t kSize = sizeof(typename Tile::Element);
  const auto matrix = [&](const WeightRef& w) {
    return TmaWeights::Matrix{
        swizzled_map(w.data, a.n, a.k * kSize, w.stride * kSize, Tile::kHalfRows), w.scale};
  };
  TmaWeights weights{};
  for (std::size_t e = 0; e < host.weight.size(); ++e) {
    weights.weight[e] = matrix(host.weight[e]);
    if (Tile::kSwiglu) weights.up[e] = matrix(host.up[e]);
  }
  const std::int64_t row_groups =
      ceil_div<std::int64_t>(a.n, std::int64_t(Tile::kOutputs) * Tile::kCluster);
  const std::int64_t clusters =
      std::min<std::int64_t>(processors / Tile::kCluster, row_groups * a.max_tiles);
  launch(stream,
         {.blocks = clusters * Tile::kCluster,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes,
          .cluster = Tile::kCluster},
         gemm_tma_kernel<Tile>, a,
         swizzled_map(a.x, a.slots, a.k * kSize, a.x_stride * kSize, Tile::kGroupTokens), weights);
}

}  // namespace ostro::cuda
