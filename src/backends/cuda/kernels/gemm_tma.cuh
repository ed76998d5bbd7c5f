// The GEMM of prompts: a kernel that gemm_tma_*.cu instantiate. Its tiles and copies are in
// gemm_tma_tile.cuh, its sums in gemm_tma_sums.cuh, its results in gemm_tma_store.cuh.
//
// Roles:    tokens are the rows (M) of the product, weights its columns (N), so that a token's
//           scale belongs to a row of a fragment, and the 128 outputs that share a scale of an
//           e4m3 result to four lanes: sums go from registers to memory.
// Numbers:  bit by bit those of gemm_e4m3.cuh and gemm_wgmma.cuh, whatever the operands' roles. Of
//           e4m3 the tensor core sums 128 columns in four steps of 32, and these sums are added in
//           f32 in order; of bf16 and f16 it sums all columns in steps of 16.
// Grid:     as many blocks as multiprocessors, in clusters of two that walk one list of tiles of
//           256 weight rows x 256 tokens; a warpgroup has 64 of the tokens. With SwiGLU the 256
//           rows are 128 gate rows and the up rows of the same outputs. Of a tile of at most
//           64 tokens, what remains of many an expert's, a block takes all 256 rows and its
//           neighbour the next 256.
// Pipeline: one thread copies boxes (TMA, 128-byte swizzle) into four stages of 128 bytes of K, of
//           the next tile too while the results of this one are stored: its own tokens, and half of
//           the weight rows for both blocks. Two warpgroups multiply. Of e4m3 each takes half of a
//           stage's weight rows, waits, and adds these sums in f32 while the other has the tensor
//           cores; the second starts a stage behind the first, so that they do not end a tile at
//           the same time.
// Traffic:  32 KB from L2 for each 8.4 MFLOP of e4m3, 4.2 of bf16. Weights come from memory once
//           for up to 256 tokens of an expert.
// Bound by: memory up to about 240 tokens an expert, then power: 8192 tokens of e4m3 run at 1445
//           MHz (cycles by time; NVML says 1750) and 720 W of 700. A stage of gate and up takes
//           1115 cycles and the tensor cores need 1024; a tile of gate and up has 4600 more beside
//           its 32 stages (H200).
// Floor on an H100: weights' bytes / 3.15e12 s; 2 tokens n k / 1385e12 s (e4m3), 757e12 (bf16).
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes; of the floor): e4m3: qkv
//           90.7 us at 2048 tokens (82 %), 378 us at 8192 (79 %); all of an expert layer 597 us at
//           512 (75 %), 1.53 ms at 2048 (68 %), 5.18 ms at 8192 (81 %). bf16: qkv 134 us at 2048,
//           587 us at 8192 (93 %); experts 1.11 ms at 512 (80 %), 2.57 ms at 2048 (74 %), 8.59 ms
//           at 8192 (89 %).
#pragma once

#include "backends/cuda/kernels/gemm_tma_store.cuh"
#include "backends/cuda/kernels/gemm_tma_sums.cuh"
#include "backends/cuda/kernels/gemm_tma_tile.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/registers.cuh"

namespace ostro::cuda {

template <class Tile>
__device__ inline TileScales load_scales(const GemmArgs& a, const TmaWeights& weights, int expert,
                                         int n0, int thread, const Fragment& f) {
  TileScales scales;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool is_up = Tile::kSwiglu && h == 1;
    const int output = n0 + thread + (Tile::kSwiglu ? 0 : h * Tile::kHalfRows);
    const TmaWeights::Matrix& m = is_up ? weights.up[expert] : weights.weight[expert];
    if (output < a.n) scales.weight[h] = m.scale[output];
    if (!Tile::kGroupScales && f.there[h]) scales.x[h] = a.x_scale[f.slot + 8 * h];
  }
  return scales;
}

// A multiplying warpgroup: its part of the tokens of each tile.
template <class Tile>
__device__ void multiply_tiles(const GemmArgs& a, const TmaWeights& weights, MathWarp<Tile> m,
                               int k_tiles) {
  TileWalk<Tile> walk(a);
  TileTask task;
  bool more = walk.take(a, task);
  // One warpgroup works behind the other, so that they do not end a tile at the same time.
  if (m.group > 0 && more && k_tiles > Tile::kLag) ptx::barrier_wait(m.stages.full(Tile::kLag), 0);
  while (more) {
    const int n0 = task.row_tile * Tile::kOutputs;
    const int first = Tile::first_token(m.group, task);
    const int row = first + m.warp * 16 + m.lane / 4;
    const TokenTile now = task.tokens;
    more = walk.take(a, task);  // loads while this one is multiplied
    if (now.count <= first) {
      m.skip(k_tiles);
      continue;
    }
    const Fragment f{m.lane, now.first + row, {row < now.count, row + 8 < now.count}};
    float sum[128] = {};  // of 128 weight rows, and of the other 128
    if constexpr (Tile::kE4m3) {
      const TileScales scales =
          load_scales<Tile>(a, weights, now.expert, n0, m.warp * 32 + m.lane, f);
      E4m3Sums<Tile>(a, m, f, sum).add_stages(k_tiles);
      scale_sums(m, f, scales, sum);
    } else {
      sum_stages_16(m, k_tiles, sum);
    }
    if constexpr (Tile::kSwiglu) {
      // Of rows behind the last, which were copied as zeros, it is zero.
#pragma unroll
      for (int e = 0; e < 64; ++e) sum[e] = swiglu(sum[e], sum[64 + e]);
    }
    store_sums<Tile>(a, f, n0, sum);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_tma_kernel(const GemmArgs a, const __grid_constant__ CUtensorMap x,
                    const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw);
  const Stages<Tile> stages{(raw + 1023) & ~1023u};
  float* const scales =
      reinterpret_cast<float*>(shared_raw + (stages.shared - raw) + Tile::kScales);
  // The same in all lanes, which the compiler is to know: descriptors of wgmma are warp-wide.
  const int group = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;

  // Each warp of each block of the cluster arrives once in a phase.
  if (threadIdx.x == 0) stages.init_barriers(1, 4 * Tile::kGroups * Tile::kCluster);
  ptx::cluster_sync();
  begin_kernel();

  if (group == Tile::kGroups) {
    ptx::fewer_registers<Tile::kCopyRegisters>();
    if (warp == 0 && lane == 0) copy_tiles<Tile>(a, x, weights, stages, k_tiles);
    __syncwarp();
  } else {
    ptx::more_registers<Tile::kMathRegisters>();
    multiply_tiles<Tile>(a, weights,
                         {.stages = stages,
                          .ring = {},
                          .group = group,
                          .warp = warp,
                          .lane = lane,
                          .scales = scales + group * Tile::kRows},
                         k_tiles);
  }
  // No block ends while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

template <class Tile>
void start_gemm_tma(cudaStream_t stream, const Gemm& g, const HostWeights& host, int processors) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens && !g.args.rows, "tiles of ", g.token_tile,
              " tokens, not ", Tile::kTokens);
  const GemmArgs& a = g.args;
  constexpr std::int64_t kSize = sizeof(typename Tile::Element);
  const std::int64_t row_tiles = ceil_div<std::int64_t>(a.n, Tile::kOutputs);
  const std::int64_t clusters =
      std::min<std::int64_t>(processors / Tile::kCluster, row_tiles * a.max_tiles);
  launch(stream,
         {.blocks = clusters * Tile::kCluster,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes,
          .cluster = Tile::kCluster},
         gemm_tma_kernel<Tile>, a,
         swizzled_map(a.x, a.slots, a.k * kSize, a.x_stride * kSize, Tile::kPartTokens),
         tma_weights<Tile>(a, host));
}

}  // namespace ostro::cuda
