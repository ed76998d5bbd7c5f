// The GEMM of integer weights for prompts: a kernel that gemm_tma_int4.cu and
// gemm_tma_int8.cu instantiate.
//
// Roles:    as in gemm_integer.cuh: weights are the rows (M) of the product, widened in registers,
//           tokens its columns (N).
// Numbers:  bit by bit those of gemm_integer.cuh.
// Grid:     as many blocks as multiprocessors, in clusters of two that walk one list of tiles of
//           2 x 256 weight rows x 128 tokens. With SwiGLU the 256 rows are 128 gate rows and the up
//           rows of the same outputs.
// Pipeline: one thread copies boxes (TMA) into stages of 128 columns, half of the tokens for both
//           blocks of the cluster. Two warpgroups multiply 128 rows each, 64 at a time: while one
//           widens or adds, the tensor core works for the other.
// Traffic:  32 KB (int4) or 48 KB (int8) from L2 for each 8.4 MFLOP.
// Bound by: tensor cores.
// Floor on an H100: 2 tokens n k / 757e12 s.
// Measured (H200, cuda_kernels_bench, Mixtral 8x7B's shapes, 2048 tokens; of that floor): all of an
//           expert layer 2.84 ms in int4 (67 %), 3.20 ms in int8 (60 %); qkv 180 us in int4 (76 %).
#pragma once

#include "backends/cuda/kernels/gemm_integer.cuh"
#include "backends/cuda/kernels/gemm_stages.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/tma.cuh"

namespace ostro::cuda {

template <class X_, int kBits_, bool kSwiglu_>
struct IntegerTmaTile {
  using X = X_;
  static constexpr int kBits = kBits_, kCluster = 2, kGroups = 2;
  static constexpr bool kSwiglu = kSwiglu_, kInt4 = kBits == 4;
  static constexpr int kTokens = kIntegerTmaTile, kShare = kTokens / kCluster;
  static constexpr int kRows = 256, kOutputs = kSwiglu ? 128 : 256;
  static constexpr int kGroupColumns = 128;  // columns of a stage
  static constexpr int kRowBytes = kGroupColumns * kBits / 8, kWeightBytes = kRows * kRowBytes;
  static constexpr int kTokenBlockBytes = kTokens * 128, kTokenBytes = 2 * kTokenBlockBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kStages = kInt4 ? 4 : 3;
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kSharedBytes = kBarriers + kStages * 16 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kMathRegisters = 240, kCopyRegisters = 24;
  static constexpr int kRaster = BlockTile::kRaster / kCluster;
};

// The tiles of a cluster, one after the other, and the stages' ring beside them.
template <class Tile>
struct IntegerTmaWalk : StageRing<Tile::kStages> {
  int row_groups, token_tiles, next, row_tile = 0;
  TokenTile tile{};

  __device__ explicit IntegerTmaWalk(const GemmArgs& a) {
    const int row_tiles = (a.n + Tile::kOutputs - 1) / Tile::kOutputs;
    row_groups = (row_tiles + Tile::kCluster - 1) / Tile::kCluster;
    token_tiles = a.tiles ? *a.tile_count : a.max_tiles;
    next = int(blockIdx.x) / Tile::kCluster;
  }
  __device__ bool take(const GemmArgs& a) {  // false: there is none left
    if (next >= row_groups * token_tiles) return false;
    const BlockTile at(row_groups, token_tiles, next, Tile::kRaster);
    next += int(gridDim.x) / Tile::kCluster;
    row_tile = at.row * Tile::kCluster + int(blockIdx.x) % Tile::kCluster;
    tile = token_tile_of(a, at.token, Tile::kTokens);
    return true;
  }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_integer_tma_kernel(const GemmArgs a, const __grid_constant__ CUtensorMap x,
                            const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const Stages<Tile> stages{(ptx::shared_address(shared_raw) + 1023) & ~1023u};
  const int group = int(threadIdx.x) / 128, warp = int(threadIdx.x) / 32 % 4;
  const int lane = int(threadIdx.x) % 32;
  const int groups = (a.k + Tile::kGroupColumns - 1) / Tile::kGroupColumns;

  // Each multiplying warp of each block of the cluster reads a stage.
  if (threadIdx.x == 0) stages.init_barriers(1, 4 * Tile::kGroups * Tile::kCluster);
  ptx::cluster_sync();
  begin_kernel();

  IntegerTmaWalk<Tile> walk(a);
  if (group == Tile::kGroups) {
    ptx::fewer_registers<Tile::kCopyRegisters>();
    if (warp == 0 && lane == 0) {
      constexpr std::uint16_t kBoth = 3;
      const int rank = int(blockIdx.x) % Tile::kCluster;
      while (walk.take(a)) {
        const CUtensorMap& first = weights.weight[walk.tile.expert].rows;
        const CUtensorMap& second = Tile::kSwiglu ? weights.up[walk.tile.expert].rows : first;
        const int first_row = walk.row_tile * Tile::kOutputs;
        const int second_row = first_row + (Tile::kSwiglu ? 0 : 128);
        for (int g = 0; g < groups; ++g) {
          const std::uint32_t to = stages.weights(walk.stage);
          const std::uint32_t barrier = stages.full(walk.stage);
          ptx::barrier_wait(stages.empty(walk.stage), walk.parity ^ 1);
          // What comes from the other block too; it may have come already.
          ptx::barrier_arrive_expect(barrier, Tile::kStageBytes);
          ptx::copy_box(to, first, g * Tile::kRowBytes, first_row, barrier);
          ptx::copy_box(to + 128 * Tile::kRowBytes, second, g * Tile::kRowBytes, second_row,
                        barrier);
          for (int b = 0; b < 2; ++b)
            ptx::copy_box_to(
                kBoth,
                to + Tile::kWeightBytes + b * Tile::kTokenBlockBytes + rank * Tile::kShare * 128, x,
                (2 * g + b) * 128, walk.tile.first + rank * Tile::kShare, barrier);
          walk.advance();
        }
      }
    }
    __syncwarp();
  } else {
    ptx::more_registers<Tile::kMathRegisters>();
    unsigned char* const shared_data =
        shared_raw + (stages.shared - ptx::shared_address(shared_raw));
    // Of this warpgroup's two tiles of 64 rows: with SwiGLU gate rows and the up rows of the same
    // outputs, else neighbours.
    const int row0 = warp * 16 + lane / 4;
    const auto row_of = [&](int m) {  // in a stage; that of this lane, another is 8 below
      return (Tile::kSwiglu ? m * 128 + group * 64 : group * 128 + m * 64) + row0;
    };
    const auto output_of = [&](int m) {
      return walk.row_tile * Tile::kOutputs + (Tile::kSwiglu ? group * 64 : group * 128 + m * 64) +
             row0;
    };
    while (walk.take(a)) {
      float sum[2][Tile::kTokens / 2] = {};
      const float* const matrix_scale[2] = {
          weights.weight[walk.tile.expert].scale,
          (Tile::kSwiglu ? weights.up : weights.weight)[walk.tile.expert].scale};
      const auto scale_row = [&](int m, int e) { return min(a.n - 1, output_of(m) + 8 * e); };
      for (int g = 0; g < groups; ++g) {
        const int stage = walk.stage * Tile::kStageBytes;
        ptx::barrier_wait(stages.full(walk.stage), walk.parity);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const unsigned char* const from =
              shared_data + stage + row_of(m) * Tile::kRowBytes + (Tile::kInt4 ? lane % 4 * 16 : 0);
          IntegerRows<Tile> rows{{from, from + 8 * Tile::kRowBytes}, lane, {}};
          float scale[2] = {1, 1};
          if constexpr (Tile::kInt4)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              scale[e] = widen(__ldg(reinterpret_cast<const __nv_bfloat16*>(matrix_scale[m]) +
                                     scale_row(m, e) * a.w_scale_stride + g));
          float part[Tile::kTokens / 2];
          multiply_group<Tile, Tile::kTokens>(part, rows, stages.tokens(walk.stage));
          if (m == 1) {
            __syncwarp();
            if (lane < Tile::kCluster) ptx::barrier_arrive(stages.empty(walk.stage), lane);
          }
#pragma unroll
          for (int i = 0; i < Tile::kTokens / 2; ++i)
            sum[m][i] = fmaf(part[i], scale[i % 4 / 2], sum[m][i]);
        }
        walk.advance();
      }
      if constexpr (!Tile::kInt4)
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float scale = __ldg(matrix_scale[m] + scale_row(m, e));
#pragma unroll
            for (int i = 0; i < Tile::kTokens / 2; ++i)
              if (i % 4 / 2 == e) sum[m][i] *= scale;
          }

      const auto store = [&]<class Y>(Y* y) {
#pragma unroll
        for (int m = 0; m < (Tile::kSwiglu ? 1 : 2); ++m)
#pragma unroll
          for (int i = 0; i < Tile::kTokens / 2; ++i) {
            const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
            const int output = output_of(m) + i % 4 / 2 * 8;
            const float value = Tile::kSwiglu ? swiglu(sum[0][i], sum[1][i]) : sum[m][i];
            if (token < walk.tile.count && output < a.n)
              y[(walk.tile.first + token) * a.y_stride + output] = rounded_to<Y>(value);
          }
      };
      visit_y(a, store);
    }
  }
  // No block ends while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

// Starts a kernel whose clusters walk tiles, with `rows(weight)` as the description of a matrix, x
// in elements of x_size bytes.
template <class Tile, class Kernel, class Rows>
void start_walk(cudaStream_t stream, const Gemm& g, const HostWeights& host, int processors,
                Kernel kernel, int x_size, Rows&& rows) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens && !g.args.rows, "tiles of ", g.token_tile,
              " tokens, not ", Tile::kTokens);
  const GemmArgs& a = g.args;
  const std::int64_t row_groups =
      ceil_div<std::int64_t>(a.n, std::int64_t(Tile::kOutputs) * Tile::kCluster);
  const std::int64_t clusters =
      std::min<std::int64_t>(processors / Tile::kCluster, row_groups * a.max_tiles);
  launch(stream,
         {.blocks = clusters * Tile::kCluster,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes,
          .cluster = Tile::kCluster},
         kernel, a,
         swizzled_map(a.x, a.slots, std::int64_t(a.k) * x_size, a.x_stride * x_size, Tile::kShare),
         tma_weights(host, Tile::kSwiglu, rows));
}

template <class Tile>
void start_gemm_integer_tma(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                            int processors) {
  const GemmArgs& a = g.args;
  const std::int64_t row_bytes = std::int64_t(a.k) * Tile::kBits / 8;
  start_walk<Tile>(stream, g, host, processors, gemm_integer_tma_kernel<Tile>,
                   sizeof(typename Tile::X), [&](const WeightRef& w) {
                     return Tile::kInt4
                                ? packed_map(w.data, a.n, row_bytes, w.stride, Tile::kRowBytes, 128)
                                : swizzled_map(w.data, a.n, row_bytes, w.stride, 128);
                   });
}

template <int kBits>
void start_gemm_integer_tma_type(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                                 int processors) {
  visit_dtype<f16, bf16>(g.x_type, "the GEMM of integer weights for prompts", [&]<class T>() {
    using X = device_t<T>;
    g.swiglu ? start_gemm_integer_tma<IntegerTmaTile<X, kBits, true>>(stream, g, host, processors)
             : start_gemm_integer_tma<IntegerTmaTile<X, kBits, false>>(stream, g, host, processors);
  });
}

}  // namespace ostro::cuda
