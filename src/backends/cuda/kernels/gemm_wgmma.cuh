// The 16-bit GEMM of up to 64 tokens: a kernel that gemm_wgmma_*.cu instantiate; gemm_tma.cuh has
// more, and gemm_persistent.cuh takes experts if they are few.
//
// Roles:    weights are the rows (M) of the product and tokens its columns (N), so that one to
//           eight tokens cost one wgmma of N = 8, and every output is summed over K in steps of 16
//           in one order whatever the number of tokens: results do not depend on the batch.
// Grid:     a block for 64 weight rows x 8 .. 64 tokens; with SwiGLU one warpgroup takes 64 gate
//           rows and another the 64 up rows of the same outputs. Two blocks a multiprocessor hide
//           each other's waits. Blocks beyond the device's list of tiles end at once, so no launch
//           waits for the routing.
// Pipeline: 16-byte cp.async into kStages stages of 64 elements of K (128-byte swizzle), then
//           wgmma.m64nNk16 straight from shared memory. About 100 KB a block in flight; weights of
//           a dense layer start to load before the predecessor has ended.
// Traffic:  weights once (token tiles of one expert run side by side, so L2 serves the second),
//           tokens once for each weight tile, from L2.
// Bound by: memory.
// Floor on an H100: 2 n k bytes / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, Mixtral 8x7B's shapes; of the floor):
//           dense, qkv [6144, 4096]: 20.1 us at 1 token (79 %), 22 us at 64 (74 %), 30 us at 128.
//           lm_head [32000, 4096]: 89 us at 1 (94 %). All of an expert layer: 267 us at 1 token
//           (84 %), 880 us at 8 (91 %), 978 us at 32 (92 %).
//           What is short: 64 blocks of 4096 rows leave half of the multiprocessors idle: o takes
//           17.2 us at 1 token (62 %).
#pragma once

#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

constexpr int kGemmK = 64;               // elements of K in a stage: 128 bytes, one swizzle row
constexpr int kGemmChunks = kGemmK / 8;  // of 16 bytes

template <class T, int kGroups, int kTokens, int kStages, bool kSwiglu>
struct GemmTile {
  static_assert(!kSwiglu || kGroups == 2, "one warpgroup for gate, one for up");
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kRows = 64 * kGroups;               // weight rows in shared memory
  static constexpr int kOutputs = kSwiglu ? 64 : kRows;    // columns of y
  static constexpr int kRowStep = kThreads / kGemmChunks;  // rows that all threads load at once
  static constexpr int kWeightBytes = kRows * 128, kTokenBytes = kTokens * 128;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kTokenBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  // + 4: the four lanes that share rows write other banks.
  static constexpr int kSumStride = kRows + 4;
  static constexpr int kSumBytes = kTokens * kSumStride * 4;
  static_assert(kSumBytes <= kStages * kStageBytes, "the sums go where the stages were");
  static constexpr int kSharedBytes = kStages * kStageBytes + 1024;
  static constexpr int kBlocks = 2;  // a multiprocessor
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 << 10);
  static constexpr int kAhead = kStages - 1;  // K tiles that load meanwhile
};

template <class T, int kGroups, int kTokens, int kStages, bool kSwiglu>
__global__ void __launch_bounds__(128 * kGroups, 2) gemm_wgmma_kernel(const GemmArgs a) {
  using Tile = GemmTile<T, kGroups, kTokens, kStages, kSwiglu>;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));

  const BlockTile block((a.n + Tile::kOutputs - 1) / Tile::kOutputs, a.max_tiles);
  const int n0 = block.row * Tile::kOutputs;
  const int chunk = int(threadIdx.x) % kGemmChunks, row0 = int(threadIdx.x) / kGemmChunks;
  const int k_tiles = (a.k + kGemmK - 1) / kGemmK;
  const bool grouped = a.tiles != nullptr;

  TokenTile tile{};
  if (grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
    if (tile.count == 0) return;
  }

  // Where this thread's 16 bytes of each row come from, and go to in a stage.
  constexpr int kWeightLoads = Tile::kRows / Tile::kRowStep;
  constexpr int kTokenLoads = (kTokens + Tile::kRowStep - 1) / Tile::kRowStep;
  const T* weight_from[kWeightLoads];
  const T* token_from[kTokenLoads];
  const WeightRef weight = grouped ? a.weights[tile.expert] : a.weight;
  const WeightRef up = !kSwiglu ? WeightRef{} : grouped ? a.up_weights[tile.expert] : a.up_weight;
#pragma unroll
  for (int j = 0; j < kWeightLoads; ++j) {
    const int row = row0 + j * Tile::kRowStep;
    const bool is_up = kSwiglu && row >= 64;
    const int output = n0 + (kSwiglu ? row % 64 : row);
    const T* const from = static_cast<const T*>(is_up ? up.data : weight.data);
    const std::int64_t stride = is_up ? up.stride : weight.stride;
    weight_from[j] = output < a.n ? from + output * stride + chunk * 8 : nullptr;
  }
  const std::uint32_t to = shared + row0 * 128 + ((chunk ^ (row0 & 7)) << 4);
  static_assert(Tile::kRowStep % 8 == 0, "rows of one thread swizzle alike");

  // Bytes of this thread's chunk of K tile i that exist; the rest of the 16 is zero.
  const auto bytes_of = [&](int i) { return max(0, min(16, (a.k - i * kGemmK - chunk * 8) * 2)); };
  const auto load_weights = [&](int i) {
    const int bytes = bytes_of(i);
    const std::uint32_t stage = to + (i % kStages) * Tile::kStageBytes;
#pragma unroll
    for (int j = 0; j < kWeightLoads; ++j)
      if (weight_from[j])
        ptx::copy16(stage + j * Tile::kRowStep * 128,
                    bytes > 0 ? weight_from[j] + std::int64_t(i) * kGemmK : weight_from[j], bytes);
  };
  const auto load_tokens = [&](int i) {
    const int bytes = bytes_of(i);
    const std::uint32_t stage = to + (i % kStages) * Tile::kStageBytes + Tile::kWeightBytes;
#pragma unroll
    for (int j = 0; j < kTokenLoads; ++j)
      if (token_from[j])
        ptx::copy16(stage + j * Tile::kRowStep * 128,
                    bytes > 0 ? token_from[j] + std::int64_t(i) * kGemmK : token_from[j], bytes);
  };

  // Weights do not change during a step: they need not wait for the predecessor.
  constexpr int kAhead = Tile::kAhead;
  for (int i = 0; i < min(kAhead, k_tiles); ++i) load_weights(i);
  if (!grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
  }
#pragma unroll
  for (int j = 0; j < kTokenLoads; ++j) {
    const int row = row0 + j * Tile::kRowStep;
    const std::int64_t slot = tile.first + row;
    const bool there = row < min(tile.count, kTokens);
    const std::int64_t x_row = !there ? 0 : a.rows ? a.rows[slot] : slot;
    token_from[j] = there ? static_cast<const T*>(a.x) + x_row * a.x_stride + chunk * 8 : nullptr;
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < k_tiles) load_tokens(i);
    ptx::copy_commit();
  }

  const int group = int(threadIdx.x) / 128;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  float* const sums = reinterpret_cast<float*>(shared_data);

  // The products go to shared memory: [token][weight row].
  float sum[kTokens / 2];
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
  for (int i = 0; i < k_tiles; ++i) {
    ptx::copy_wait<kAhead - 1>();
    ptx::fence_async_proxy();
    // Stage i is there, and every warpgroup has done with the stage that is loaded next.
    __syncthreads();
    if (i + kAhead < k_tiles) {
      load_weights(i + kAhead);
      load_tokens(i + kAhead);
    }
    ptx::copy_commit();
    const std::uint32_t stage = shared + (i % kStages) * Tile::kStageBytes;
    const std::uint64_t rows = ptx::swizzled_tile(stage + group * 64 * 128);
    const std::uint64_t tokens = ptx::swizzled_tile(stage + Tile::kWeightBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kGemmK / 16; ++step)
      ptx::Wgmma<T, kTokens>::run(sum, rows + 2 * step, tokens + 2 * step);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }
  ptx::copy_wait<0>();
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[(8 * j + 2 * (lane % 4) + i % 2) * Tile::kSumStride + 16 * warp + lane / 4 +
           8 * (i / 2)] = sum[4 * j + i];
  __syncthreads();

  // From shared memory a warp writes consecutive outputs of one token.
  constexpr int kPacks = Tile::kOutputs / 4;
  for (int item = int(threadIdx.x); item < tile.count * kPacks; item += Tile::kThreads) {
    const int token = item / kPacks, column = item % kPacks * 4;
    const float* const from = sums + token * Tile::kSumStride + column;
    auto value = load_pack<4>(from);
    if constexpr (kSwiglu) {
      const auto up_value = load_pack<4>(from + 64);
#pragma unroll
      for (int j = 0; j < 4; ++j) value.v[j] = swiglu(value.v[j], up_value.v[j]);
    }
    store_outputs(a, tile.first + token, n0 + column, value);
  }
}

template <class T, int kGroups, int kTokens, int kStages, bool kSwiglu>
void start_gemm_wgmma(cudaStream_t stream, const Gemm& g) {
  using Tile = GemmTile<T, kGroups, kTokens, kStages, kSwiglu>;
  OSTRO_CHECK(g.token_tile == kTokens, "tiles of ", g.token_tile, " tokens, not ", kTokens);
  launch(stream,
         {.blocks = ceil_div<std::int64_t>(g.args.n, Tile::kOutputs) * g.args.max_tiles,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_wgmma_kernel<T, kGroups, kTokens, kStages, kSwiglu>, g.args);
}

// Stages: as many as fit beside the other block of a multiprocessor.
template <class T>
void gemm_wgmma_of(cudaStream_t stream, const Gemm& g) {
  switch (g.token_tile) {
    case 8:
      return g.swiglu ? start_gemm_wgmma<T, 2, 8, 6, true>(stream, g)
                      : start_gemm_wgmma<T, 1, 8, 12, false>(stream, g);
    case 16:
      return g.swiglu ? start_gemm_wgmma<T, 2, 16, 6, true>(stream, g)
                      : start_gemm_wgmma<T, 1, 16, 11, false>(stream, g);
    case 32:
      return g.swiglu ? start_gemm_wgmma<T, 2, 32, 5, true>(stream, g)
                      : start_gemm_wgmma<T, 1, 32, 9, false>(stream, g);
    case 64:
      return g.swiglu ? start_gemm_wgmma<T, 2, 64, 4, true>(stream, g)
                      : start_gemm_wgmma<T, 1, 64, 6, false>(stream, g);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
