// The e4m3 GEMM of up to 64 tokens: a kernel that gemm_e4m3*.cu instantiate; gemm_tma.cuh has more,
// and gemm_persistent.cuh takes experts if they are few.
//
// Roles:    as in gemm_wgmma.cuh: weights are the rows (M) of the product, tokens its columns (N).
// Numbers:  a stage holds 128 columns. Their products are summed by the tensor core, which keeps
//           about 14 bits of an e4m3 sum; the sums of stages are added in f32, in order, times the
//           stage's token scale if x has one for 128 columns. Row scales multiply the result.
// Grid:     a block for 64 weight rows and 8 .. 64 tokens. With SwiGLU it has two warpgroups, each
//           with 64 gate rows and the up rows of the same outputs, so that a block has all 128
//           columns that share a scale of the e4m3 output.
// Pipeline: 16-byte cp.async into kStages stages (128-byte swizzle), then wgmma.m64nNk32 straight
//           from shared memory; blocks hide each other's waits. Weights of a dense layer start to
//           load before the predecessor has ended.
// Traffic:  weights once, tokens once for each block of weight rows, from L2.
// Bound by: memory.
// Floor on an H100: n k bytes / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench f8e4m3, Mixtral 8x7B's shapes; of the floor):
//           qkv 13.2 us at 1 token (61 %), 16.2 us at 64 (52 %); o 12.1 us at 1 (44 %). All of an
//           expert layer: 143 us at 1 (78 %), 465 us at 8 (87 %).
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

// kBlocks of kStages stages fit on a multiprocessor.
template <int kTokens_, int kGroups_, int kHalves_, int kStages_, int kBlocks_, bool kSwiglu_,
          bool kGroupScales_>
struct E4m3Tile {
  static constexpr int kTokens = kTokens_, kGroups = kGroups_, kHalves = kHalves_;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static constexpr bool kSwiglu = kSwiglu_, kGroupScales = kGroupScales_;
  static constexpr int kK = 128;  // columns of a stage: bytes of a swizzle row
  static_assert(kK == quant::kE4m3Group);
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kHalfRows = 64 * kGroups;
  static constexpr int kRows = kHalfRows * kHalves;
  static constexpr int kOutputs = kSwiglu ? kHalfRows : kRows;
  static_assert(!kSwiglu || (kHalves == 2 && kOutputs == quant::kE4m3Group));
  static constexpr int kRowStep = kThreads / 8;  // rows that all threads load at once
  static constexpr int kWeightBytes = kRows * kK, kTokenBytes = kTokens * kK;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kTokenBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  static constexpr int kScaleBytes = kGroupScales ? kStages * kTokens * 4 : 0;
  static_assert(kTokens <= kThreads, "a thread loads at most one scale");
  // + 4: the four lanes that share rows write other banks.
  static constexpr int kSumStride = kOutputs + 4;
  static_assert(kTokens * kSumStride * 4 <= kStages * kStageBytes, "sums go where stages were");
  static constexpr int kSharedBytes = kStages * kStageBytes + kScaleBytes + 1024;
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 << 10);
  static constexpr int kAhead = kStages - 1;  // stages that load meanwhile
};

// 16 bytes at an address of any alignment, of which `bytes` exist.
__device__ inline void copy_unaligned(std::uint32_t to, const std::uint8_t* from, int bytes) {
  std::uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i < bytes) words[i / 4] |= std::uint32_t(from[i]) << 8 * (i % 4);
  ptx::store16(to, {words[0], words[1], words[2], words[3]});
}

// kAligned: weight rows start at 16 bytes.
template <class Tile, bool kAligned>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gemm_e4m3_kernel(const GemmArgs a) {
  constexpr int kTokens = Tile::kTokens, kStages = Tile::kStages, kAhead = Tile::kAhead;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  const float* const scales =
      reinterpret_cast<const float*>(shared_data + kStages * Tile::kStageBytes);

  const BlockTile block((a.n + Tile::kOutputs - 1) / Tile::kOutputs, a.max_tiles);
  const int n0 = block.row * Tile::kOutputs;
  const int chunk = int(threadIdx.x) % 8, row0 = int(threadIdx.x) / 8;
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const bool grouped = a.tiles != nullptr;

  TokenTile tile{};
  if (grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
    if (tile.count == 0) return;
  }
  const WeightRef weight = grouped ? a.weights[tile.expert] : a.weight;
  const WeightRef up = !Tile::kSwiglu ? WeightRef{}
                       : grouped      ? a.up_weights[tile.expert]
                                      : a.up_weight;

  // This thread's 16 bytes of rows row0, row0 + kRowStep ... of a stage.
  const std::uint32_t to = shared + row0 * Tile::kK + ((chunk ^ (row0 & 7)) << 4);
  static_assert(Tile::kRowStep % 8 == 0, "rows of one thread swizzle alike");
  const auto bytes_of = [&](int i) { return max(0, min(16, a.k - i * Tile::kK - chunk * 16)); };
  const auto load_weights = [&](int i) {
    const int bytes = bytes_of(i);
    const std::int64_t column = bytes > 0 ? std::int64_t(i) * Tile::kK + chunk * 16 : 0;
    const std::uint32_t stage = to + (i % kStages) * Tile::kStageBytes;
#pragma unroll
    for (int j = 0; j < Tile::kRows / Tile::kRowStep; ++j) {
      const int row = row0 + j * Tile::kRowStep;
      const bool is_up = Tile::kSwiglu && j >= Tile::kHalfRows / Tile::kRowStep;
      const int output = n0 + (is_up ? row - Tile::kHalfRows : row);
      if (output >= a.n) continue;
      const WeightRef& w = is_up ? up : weight;
      const std::uint8_t* const from =
          static_cast<const std::uint8_t*>(w.data) + output * w.stride + column;
      const std::uint32_t there = stage + j * Tile::kRowStep * Tile::kK;
      if constexpr (kAligned)
        ptx::copy16(there, from, bytes);
      else
        copy_unaligned(there, from, bytes);
    }
  };

  // Weights do not change during a step: they need not wait for the predecessor.
  for (int i = 0; i < min(kAhead, k_tiles); ++i) load_weights(i);
  if (!grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
  }
  constexpr int kTokenLoads = (kTokens + Tile::kRowStep - 1) / Tile::kRowStep;
  const std::uint8_t* token_from[kTokenLoads];
#pragma unroll
  for (int j = 0; j < kTokenLoads; ++j) {
    const int row = row0 + j * Tile::kRowStep;
    const bool there = row < min(tile.count, kTokens);
    const std::int64_t slot = tile.first + row;
    const std::int64_t x_row = !there ? 0 : a.rows ? a.rows[slot] : slot;
    token_from[j] =
        there ? static_cast<const std::uint8_t*>(a.x) + x_row * a.x_stride + chunk * 16 : nullptr;
  }
  const bool has_scale = Tile::kGroupScales && int(threadIdx.x) < tile.count;
  const float* const scale_from = a.x_scale + tile.first + int(threadIdx.x);
  const auto load_tokens = [&](int i) {
    const int bytes = bytes_of(i);
    const std::uint32_t stage = to + (i % kStages) * Tile::kStageBytes + Tile::kWeightBytes;
#pragma unroll
    for (int j = 0; j < kTokenLoads; ++j)
      if (token_from[j])
        ptx::copy16(stage + j * Tile::kRowStep * Tile::kK,
                    token_from[j] + (bytes > 0 ? std::int64_t(i) * Tile::kK : 0), bytes);
    if constexpr (Tile::kGroupScales)
      if (int(threadIdx.x) < kTokens)
        ptx::copy4(
            shared + kStages * Tile::kStageBytes + ((i % kStages) * kTokens + int(threadIdx.x)) * 4,
            has_scale ? scale_from + i * a.x_scale_stride : a.x_scale, has_scale ? 4 : 0);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < k_tiles) load_tokens(i);
    ptx::copy_commit();
  }

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int group = warp / 4;
  // Of a fragment: its rows are row and row + 8, its columns 8 j + column and + 1.
  const int row = group * 64 + warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
  float* const sums = reinterpret_cast<float*>(shared_data);

  // The products, scaled, go to shared memory: [token][output].
  float sum[Tile::kHalves][kTokens / 2] = {};
  for (int i = 0; i < k_tiles; ++i) {
    ptx::copy_wait<kAhead - 1>();
    ptx::fence_async_proxy();
    // Stage i is there, and every warpgroup has done with the stage that is loaded next.
    __syncthreads();
    if (i + kAhead < k_tiles) {
      load_weights(i + kAhead);
      load_tokens(i + kAhead);
    }
    const std::uint32_t stage = shared + (i % kStages) * Tile::kStageBytes;
    const std::uint64_t tokens = ptx::swizzled_tile(stage + Tile::kWeightBytes);
#pragma unroll
    for (int h = 0; h < Tile::kHalves; ++h) {
      const std::uint64_t rows =
          ptx::swizzled_tile(stage + (h * Tile::kHalfRows + group * 64) * Tile::kK);
      float part[kTokens / 2] = {};
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < Tile::kK / 32; ++step)
        ptx::Wgmma<__nv_fp8_e4m3, kTokens>::run(part, rows + 2 * step, tokens + 2 * step);
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        float2 scale{1, 1};
        if constexpr (Tile::kGroupScales)
          scale =
              *reinterpret_cast<const float2*>(scales + (i % kStages) * kTokens + 8 * j + column);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum[h][4 * j + e] = fmaf(part[4 * j + e], e % 2 ? scale.y : scale.x, sum[h][4 * j + e]);
      }
    }
    ptx::copy_commit();
  }
  ptx::copy_wait<0>();
  __syncthreads();

  float weight_scale[Tile::kHalves][2];
#pragma unroll
  for (int h = 0; h < Tile::kHalves; ++h)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool is_up = Tile::kSwiglu && h == 1;
      const int output = n0 + row + 8 * e + (is_up ? 0 : h * Tile::kHalfRows);
      weight_scale[h][e] = output < a.n ? (is_up ? up : weight).scale[output] : 0;
    }
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = 8 * j + column + e % 2;
      float x_scale = 1;
      if constexpr (!Tile::kGroupScales)
        if (token < tile.count) {
          const std::int64_t slot = tile.first + token;
          x_scale = a.x_scale[a.rows ? a.rows[slot] : slot];
        }
      float* const at = sums + token * Tile::kSumStride + row + 8 * (e / 2);
      const auto scaled = [&](int h) {
        return sum[h][4 * j + e] * x_scale * weight_scale[h][e / 2];
      };
      if constexpr (Tile::kSwiglu) {
        *at = swiglu(scaled(0), scaled(1));
      } else {
#pragma unroll
        for (int h = 0; h < Tile::kHalves; ++h) at[h * Tile::kHalfRows] = scaled(h);
      }
    }
  __syncthreads();

  if constexpr (Tile::kSwiglu) {
    // A warp rounds a token's outputs, four a lane, with one scale.
    for (int token = warp; token < tile.count; token += Tile::kThreads / 32) {
      auto value = load_pack<4>(sums + token * Tile::kSumStride + lane * 4);
      const int first = n0 + lane * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (first + j >= a.n) value.v[j] = 0;
      const float most = warp_max(amax(value, quant::kE4m3LeastAmax));
      const std::int64_t slot = tile.first + token;
      // Rows of y are padded to 16 bytes.
      if (first < a.n)
        *reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(a.y) + slot * a.y_stride +
                                          first) = to_e4m3(value, e4m3_factor(most));
      if (lane == 0) a.y_scale[block.row * a.y_scale_stride + slot] = e4m3_scale(most);
    }
  } else {
    // From shared memory a warp writes consecutive outputs of one token.
    constexpr int kPacks = Tile::kOutputs / 4;
    for (int item = int(threadIdx.x); item < tile.count * kPacks; item += Tile::kThreads) {
      const int token = item / kPacks, first = item % kPacks * 4;
      store_outputs(a, tile.first + token, n0 + first,
                    load_pack<4>(sums + token * Tile::kSumStride + first));
    }
  }
}

template <class Tile, bool kAligned = true>
void start_gemm_e4m3(cudaStream_t stream, const Gemm& g) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens, "tiles of ", g.token_tile, " tokens, not ",
              Tile::kTokens);
  launch(stream,
         {.blocks = ceil_div<std::int64_t>(g.args.n, Tile::kOutputs) * g.args.max_tiles,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_e4m3_kernel<Tile, kAligned>, g.args);
}

}  // namespace ostro::cuda
