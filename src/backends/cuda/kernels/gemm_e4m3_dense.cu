// The e4m3 GEMM of a dense layer for up to 64 tokens: tiles of so few weight rows that every
// multiprocessor has one, and of all tokens. gemm_e4m3_wave.cu takes more.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N).
// Numbers:  bit by bit those of gemm_e4m3.cuh; x has one scale a row.
// Grid:     a block for 32, 48 or 64 weight rows x 8 to 64 tokens, one a multiprocessor. If a tile
//           has fewer rows than the 64 of wgmma, the last are what shared memory happens to hold;
//           nobody stores them.
// Pipeline: one thread copies boxes (TMA) of 128 columns, weights from before the predecessor has
//           ended: up to 32 stages, at few tokens nearly all of K. A warpgroup multiplies two
//           stages at a time.
// Traffic:  weights once; tokens once for each block, from L2.
// Bound by: memory, and the latency of a launch.
// Floor on an H100: n k bytes / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench f8e4m3, with the rounding of x; of the floor): qkv
//           of Mixtral 8x7B 13.5 us at 1 token (59 %), 13.3 at 32 (62 %), 14.8 at 64 (57 %); o 11.2
//           (48 %), 12.2, 12.2. On an H200, in one run, by gemm_e4m3.cuh 12.1, 14.7, 16.4 us and
//           11.4, 12.2, 13.6, by this kernel 11.9, 12.1, 13.0 and 10.1, 11.7, 12.1.
#include "backends/cuda/kernels/gemm_e4m3_decode.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

template <int kRows_, int kTokens_>
struct DenseTile {
  static_assert(kRows_ <= kMostDenseRows && kTokens_ <= kMostDenseTokens);
  static constexpr int kRows = kRows_, kTokens = kTokens_, kCluster = 1;
  static constexpr bool kTokensAreRows = false;
  static constexpr int kK = 128;  // columns of a stage: bytes of a swizzle row
  static_assert(kK == quant::kE4m3Group);
  static constexpr int kWeightBytes = kRows * kK, kTokenBytes = kTokens * kK;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kWeightBytes % 1024 == 0 && kTokenBytes % 1024 == 0, "swizzled tiles");
  // All that fit beside a block of a norm, 32 at most: 4096 columns. wgmma reads 64 rows in the
  // last of them, too.
  static constexpr int kOther = 16 * 32 + 1024 + (64 - kRows) * kK;
  static constexpr int kFitting = ((224 << 10) - kOther) / kStageBytes;
  static constexpr int kStages = kFitting < 32 ? kFitting : 32;
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kSharedBytes = kBarriers + kOther;
  static_assert(kSharedBytes <= 224 << 10);
  static constexpr int kMathWarps = 4, kThreads = 32 * (kMathWarps + 1);
  static constexpr int kParts = 2;  // products under way
};

// What a thread of the warpgroup that multiplies makes of its sums.
template <class Tile>
class DenseResults {
 public:
  // Of weights before the predecessor has ended, of tokens after it, both long before store().
  __device__ void load_weight_scales(const GemmArgs& a, int n0) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (takes(a, n0, r)) weight_scale_[r] = a.weight.scale[n0 + row(r)];
  }
  __device__ void load_token_scales(const GemmArgs& a) {
#pragma unroll
    for (int e = 0; e < kN / 4; ++e)
      if (const int slot = token(e); slot < a.slots) x_scale_[e] = a.x_scale[slot];
  }

  __device__ void store(const GemmArgs& a, int n0, const float (&sum)[Tile::kTokens / 2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!takes(a, n0, r)) continue;
#pragma unroll
      for (int e = 0; e < kN / 4; ++e)
        if (const int slot = token(e); slot < a.slots) {
          const float value = sum[e / 2 * 4 + 2 * r + e % 2] * x_scale_[e] * weight_scale_[r];
          store_output(a, slot, n0 + row(r), Pack<float, 1>{{value}});
        }
    }
  }

 private:
  static constexpr int kN = Tile::kTokens;

  // The weight rows of the tile and the tokens, by number, whose sums this thread has.
  __device__ int row(int r) const { return warp_ * 16 + lane_ / 4 + 8 * r; }
  __device__ int token(int e) const { return e / 2 * 8 + lane_ % 4 * 2 + e % 2; }
  __device__ bool takes(const GemmArgs& a, int n0, int r) const {
    return row(r) < Tile::kRows && n0 + row(r) < a.n;
  }

  const int lane_ = int(threadIdx.x) % 32, warp_ = int(threadIdx.x) / 32;
  float x_scale_[kN / 4] = {}, weight_scale_[2] = {};
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_e4m3_dense_kernel(const GemmArgs a, const __grid_constant__ DecodeMaps maps) {
  extern __shared__ unsigned char shared_raw[];
  const Stages<Tile> stages{(ptx::shared_address(shared_raw) + 1023) & ~1023u};
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int n0 = int(blockIdx.x) * Tile::kRows;
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) stages.init_barriers(1, Tile::kMathWarps);
  __syncthreads();
  if (warp == Tile::kMathWarps) {
    if (threadIdx.x % 32 == 0)
      DecodeCopies<Tile>(maps, stages, n0, 0).copy(k_tiles);
    else
      begin_kernel();
    __syncwarp();
  } else {
    DenseResults<Tile> results;
    results.load_weight_scales(a, n0);
    begin_kernel();
    results.load_token_scales(a);
    DecodeSums<Tile> sums(stages, 0);
    int i = 0;
    for (; i + 1 < k_tiles; i += 2) sums.add_two_stages();
    if (i < k_tiles) sums.add_stage();
    results.store(a, n0, sums.sum());
  }
}

template <int kRows, int kTokens>
void start_dense(cudaStream_t stream, const GemmArgs& a) {
  using Tile = DenseTile<kRows, kTokens>;
  launch(stream,
         {.blocks = ceil_div(a.n, kRows),
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_e4m3_dense_kernel<Tile>, a, decode_maps<Tile>(a));
}

// The fewest weight rows a block with which every multiprocessor has one block at most.
template <int kTokens>
void start_one_wave(cudaStream_t stream, const GemmArgs& a, int processors) {
  if (ceil_div(a.n, 32) <= processors) return start_dense<32, kTokens>(stream, a);
  if (ceil_div(a.n, 48) <= processors) return start_dense<48, kTokens>(stream, a);
  start_dense<64, kTokens>(stream, a);
}

}  // namespace

void gemm_e4m3_dense(cudaStream_t stream, const Gemm& g, int processors) {
  const GemmArgs& a = g.args;
  if (a.slots <= 8) return start_one_wave<8>(stream, a, processors);
  if (a.slots <= 32) return start_one_wave<32>(stream, a, processors);
  start_one_wave<64>(stream, a, processors);
}

}  // namespace ostro::cuda
