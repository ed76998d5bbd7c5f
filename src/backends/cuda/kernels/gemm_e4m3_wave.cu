// The e4m3 GEMM of a dense layer for 65 tokens and more, as many as its tiles take in one wave:
// tiles of so few weight rows that every multiprocessor has one.
//
// Roles:    tokens are the rows (M) of the product, weights its columns (N), as in gemm_tma.cuh.
// Numbers:  bit by bit those of gemm_e4m3.cuh; x has one scale a row.
// Grid:     a block for 64 to 192 weight rows x 64 or 128 tokens. Two blocks with the same weight
//           rows and tokens that follow one another are a cluster.
// Pipeline: one thread copies boxes (TMA) of 128 columns into 5 to 13 stages, weights from before
//           the predecessor has ended: half of them, for both blocks, and its own tokens. A
//           warpgroup multiplies 64 tokens by all weight rows.
// Traffic:  weights from memory once, from L2 once for two tiles of tokens; tokens once for each
//           tile of weight rows, from L2.
// Bound by: not known for certain. A stage of 192 x 128 takes tensor cores 768 cycles and shared
//           memory 832 at 128 bytes a cycle; with its latencies that is four fifths of the time at
//           512 tokens. Two tiles of weight rows that share tokens are slower, though L2 then gives
//           less: weights are best asked for once.
// Floor on an H100: n k bytes / 3.15e12 s; 2 tokens n k / 1385e12 s.
// Measured (H100 80 GB HBM3, with the rounding of x; of the floor): qkv of Mixtral 8x7B 14.2 us at
//           128 tokens (56 %), 15.9 at 160, 16.3 at 256 (57 %), 25.0 at 512 (74 %); o 11.4 (47 %),
//           13.3, 13.6 (45 %), 20.0 (62 %); before, by gemm_e4m3_dense.cu and gemm_tma.cuh, 17.8,
//           26.7, 27.5, 29.5 us and 15.8, 21.4, 22.4, 30.4.
#include "backends/cuda/kernels/gemm_e4m3_decode.cuh"
#include "backends/cuda/kernels/gemm_tma_store.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"

namespace ostro::cuda {
namespace {

template <int kRows_, int kTokens_>
struct WaveTile {
  static constexpr int kRows = kRows_, kTokens = kTokens_;
  static constexpr bool kTokensAreRows = true;
  static constexpr int kCluster = kWaveCluster;
  static constexpr int kK = 128;  // columns of a stage: bytes of a swizzle row
  static_assert(kK == quant::kE4m3Group);
  static constexpr int kGroups = kTokens / 64;
  static constexpr int kWeightBytes = kRows * kK, kTokenBytes = kTokens * kK;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kWeightBytes % 1024 == 0 && kTokenBytes % 1024 == 0, "swizzled tiles");
  // All that fit beside a block of a norm.
  static constexpr int kMostShared = 224 << 10, kAligning = 1024;
  static constexpr int kStages =
      (kMostShared - kAligning - kRows * int(sizeof(float))) / (kStageBytes + 16);
  static constexpr int kBarriers = kStages * kStageBytes, kScales = kBarriers + 16 * kStages;
  static constexpr int kSharedBytes = kScales + kRows * int(sizeof(float)) + kAligning;
  static_assert(kSharedBytes <= kMostShared);
  static constexpr int kMathThreads = 128 * kGroups, kMathWarps = 4 * kGroups;
  // One warp copies; of two multiplying warpgroups the sums need registers that a third has left.
  static constexpr bool kShiftRegisters = kGroups > 1;
  static constexpr int kThreads = kMathThreads + (kShiftRegisters ? 128 : 32);
  static constexpr int kMathRegisters = 240, kCopyRegisters = 24;
  // A block owns what its threads have at the launch: asked for more, setmaxnreg waits for ever.
  static_assert(!kShiftRegisters || 128 * (kGroups * kMathRegisters + kCopyRegisters) <=
                                        kThreads * (65536 / kThreads / 8 * 8));
  // Products under way: of two stages where registers hold them beside the sums.
  static constexpr int kParts = kRows <= 128 ? 2 : 1;
};

// A warp of the warpgroups that multiply: `warp` of the block.
template <class Tile>
__device__ void multiply_wave(const GemmArgs& a, const Stages<Tile>& stages, int n0, int t0,
                              float* scales, int warp, int k_tiles) {
  const int lane = int(threadIdx.x) % 32;
  for (int i = int(threadIdx.x); i < Tile::kRows; i += Tile::kMathThreads)
    scales[i] = n0 + i < a.n ? a.weight.scale[n0 + i] : 0;
  ptx::named_barrier_sync(1, Tile::kMathThreads);
  begin_kernel();
  const std::int64_t slot = t0 + warp * 16 + lane / 4;
  const Fragment f{lane, slot, {true, true}};
  const float x_scale[2] = {a.x_scale[slot], a.x_scale[slot + 8]};
  const int group = warp / 4;
  DecodeSums<Tile> sums(stages, group);
  int i = 0;
  if constexpr (Tile::kParts == 2) {
    for (; i + 1 < k_tiles; i += 2) sums.add_two_stages();
  } else if (group > 0 && k_tiles > 1) {
    // A stage behind the first warpgroup: one adds up while the other has the tensor cores.
    ptx::barrier_wait(stages.full(1), 0);
  }
  for (; i < k_tiles; ++i) sums.add_stage();
  float(&sum)[Tile::kRows / 2] = sums.sum();
#pragma unroll
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    const auto both = load_pack<2>(scales + 8 * j + f.column());
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[4 * j + e] = sum[4 * j + e] * x_scale[e / 2] * both.v[e % 2];
  }
  store_floats<Tile::kRows>(a, f, n0, sum);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_e4m3_wave_kernel(const GemmArgs a, const __grid_constant__ DecodeMaps maps,
                          int row_tiles) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw);
  const Stages<Tile> stages{(raw + 1023) & ~1023u};
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int rank = int(blockIdx.x) % Tile::kCluster, cluster = int(blockIdx.x) / Tile::kCluster;
  const int n0 = cluster % row_tiles * Tile::kRows;
  // The last tiles end with the last token, so that all are full: boxes that reach beyond it are
  // slower. What two tiles have, both compute and store alike.
  const int t0 = min((cluster / row_tiles * Tile::kCluster + rank) * Tile::kTokens,
                     int(a.slots) - Tile::kTokens);
  // The same in all lanes, which the compiler is to know: descriptors are warp-wide.
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) stages.init_barriers(1, Tile::kMathWarps * Tile::kCluster);
  ptx::cluster_sync();
  if (warp >= Tile::kMathWarps) {
    if constexpr (Tile::kShiftRegisters) ptx::fewer_registers<Tile::kCopyRegisters>();
    if (threadIdx.x == Tile::kMathThreads)
      DecodeCopies<Tile>(maps, stages, n0, t0).copy(k_tiles);
    else
      begin_kernel();
    __syncwarp();
  } else {
    if constexpr (Tile::kShiftRegisters) ptx::more_registers<Tile::kMathRegisters>();
    auto* const scales =
        reinterpret_cast<float*>(shared_raw + (stages.shared - raw) + Tile::kScales);
    multiply_wave<Tile>(a, stages, n0, t0, scales, warp, k_tiles);
  }
  // No block ends while the other may still arrive at its barriers or copy to it.
  ptx::cluster_sync();
}

template <int kRows, int kTokens>
void start_wave(cudaStream_t stream, const GemmArgs& a) {
  using Tile = WaveTile<kRows, kTokens>;
  const std::int64_t row_tiles = ceil_div(a.n, kRows);
  const std::int64_t clusters =
      row_tiles * ceil_div<std::int64_t>(a.slots, kTokens * Tile::kCluster);
  launch(stream,
         {.blocks = clusters * Tile::kCluster,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes,
          .cluster = Tile::kCluster},
         gemm_e4m3_wave_kernel<Tile>, a, decode_maps<Tile>(a), int(row_tiles));
}

template <int kRows>
void start_wave(cudaStream_t stream, const GemmArgs& a, int tokens) {
  tokens == 64 ? start_wave<kRows, 64>(stream, a) : start_wave<kRows, 128>(stream, a);
}

}  // namespace

void gemm_e4m3_wave(cudaStream_t stream, const Gemm& g, int processors) {
  const GemmArgs& a = g.args;
  OSTRO_CHECK(a.slots > kMostDenseTokens, a.slots, " tokens do not fill a tile");
  const WaveTiles tiles = wave_tiles(a.slots, a.n, processors);
  switch (tiles.rows) {
    case 64:
      return start_wave<64>(stream, a, tiles.tokens);
    case 96:
      return start_wave<96>(stream, a, tiles.tokens);
    case 128:
      return start_wave<128>(stream, a, tiles.tokens);
    default:
      return start_wave<192>(stream, a, tiles.tokens);
  }
}

}  // namespace ostro::cuda
