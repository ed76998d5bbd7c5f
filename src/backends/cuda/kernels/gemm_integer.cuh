// The GEMM of integer weights and 16-bit activations: a kernel that gemm_int4.cu and gemm_int8.cu
// instantiate; gemm_integer_tma.cuh has that of prompts, and gemm_persistent_integer.cuh takes
// experts if they are few.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N). A warpgroup turns
//           integers into the 16-bit operand of wgmma in its registers, exactly; tokens are in
//           shared memory.
// Numbers:  the tensor core sums 128 columns, and these sums are added in f32 in order: of int4
//           times the scales of the groups, of int8 as they are, the row's scale multiplying the
//           result. None of it depends on the tokens.
// Grid:     a block for 64 outputs and 8, 16 or 32 tokens: with SwiGLU a warpgroup has the gate and
//           another the up rows, else two or four have all rows and every second or fourth 128
//           columns, whose sums the first adds in order. For 64 tokens four warpgroups have 256
//           rows, since a block reads the tokens for all of them from L2. Tokens that are not there
//           are not multiplied.
// Pipeline: 16-byte cp.async into kStages stages of 128 or 256 columns; int4's scales for eight
//           groups at a time. Weights of a dense layer start to load before the predecessor ends.
// Traffic:  weights once for 64 tokens, tokens once for each block of rows, from L2.
// Bound by: memory; of int4 instructions are near it: a thread widens 64 weights in 88, and has 230
//           in a stage of 32 tokens, where memory gives it 310.
// Floor on an H100: n k / 2 (int4) or n k (int8) bytes / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes, int4): qkv 10.6 us at 1
//           token, 17.8 at 32, 34.4 at 128; o 8.7, 12.9 and 21.1. All of an expert layer, in place
//           of gemm_persistent_integer.cuh, 99.6 us at 1 token (58 %), 313 at 32 (74 %), 377 at 128
//           (61
//           %); of int8 165 us at 1 (68 %), 543 at 64 (82 %).
#pragma once

#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/logic.cuh"
#include "backends/cuda/ptx/wgmma.cuh"
#include "quant/int4.h"

namespace ostro::cuda {

template <class X>
__device__ inline std::uint32_t subtract2(std::uint32_t a, std::uint32_t b);
template <>
__device__ inline std::uint32_t subtract2<__nv_bfloat16>(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 d = __hsub2(reinterpret_cast<const __nv_bfloat162&>(a),
                                   reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const std::uint32_t&>(d);
}
template <>
__device__ inline std::uint32_t subtract2<__half>(std::uint32_t a, std::uint32_t b) {
  const __half2 d =
      __hsub2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const std::uint32_t&>(d);
}

// Nibbles i and i + 4 of a word as two X. 0x4300 is 128 in bf16, whose last bit is 1 there, and
// 0x6400 is 1024 in f16: a nibble in the low bits is added to it.
template <class X>
__device__ inline std::uint32_t int4_pair(std::uint32_t word, int i) {
  constexpr bool kBf16 = std::is_same_v<X, __nv_bfloat16>;
  constexpr std::uint32_t kBase = kBf16 ? 0x43004300 : 0x64006400;
  constexpr std::uint32_t kOffset = kBf16 ? 0x43084308 : 0x64086408;  // and the 8 of the format
  return subtract2<X>(ptx::and_or<0x000f000f, kBase>(word >> 4 * i), kOffset);
}

// Two bytes as two X. Of bf16: 128 (0x4300) plus the low seven bits, less 128, or less 256 (0x4380)
// if the sign bit is set. f16 has room for 1024 (0x6400) plus a byte to which 128 was added.
template <class X>
__device__ inline std::uint32_t int8_pair(std::uint32_t bytes) {
  if constexpr (std::is_same_v<X, __half>) {
    return subtract2<X>(__byte_perm(bytes ^ 0x8080, 0x64646464, 0x4140), 0x64806480);
  } else {
    const std::uint32_t word = __byte_perm(bytes, 0x43434343, 0x4140);
    return subtract2<X>(word & 0xff7fff7f, word & 0xff80ff80);
  }
}

// What a kernel is made for. kGroups warpgroups have 64 rows each, or, if kSplit, the same rows and
// every kGroups-th group of 128 columns. A stage holds kParts groups of columns; kBlocks blocks fit
// on a multiprocessor.
template <class X_, int kBits_, bool kSwiglu_, int kTokens_, int kGroups_, bool kSplit_,
          int kParts_, int kStages_, int kBlocks_>
struct IntegerTile {
  using X = X_;
  static constexpr int kBits = kBits_, kTokens = kTokens_, kGroups = kGroups_, kParts = kParts_;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static constexpr bool kSwiglu = kSwiglu_, kInt4 = kBits == 4;
  static constexpr bool kSplit = kSplit_;
  static_assert(!kSplit || (kParts == kGroups && !kSwiglu));
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kRows = kSplit ? 64 : 64 * kGroups;  // of weights in a stage
  static constexpr int kOutputs = kSwiglu ? kRows / 2 : kRows;
  static constexpr int kGroupColumns = 128;  // columns that are summed by the tensor core
  static_assert(kGroupColumns == quant::kInt4Group);
  static constexpr int kK = kParts * kGroupColumns;
  // A stage: [part][row][columns] of weights, [64 columns][token] of tokens, 128-byte swizzled.
  static constexpr int kRowBytes = kGroupColumns * kBits / 8, kPartBytes = kRows * kRowBytes;
  static constexpr int kWeightBytes = kParts * kPartBytes;
  static constexpr int kTokenBlockBytes = kTokens * 128, kTokenBytes = kK / 64 * kTokenBlockBytes;
  static_assert(kTokenBlockBytes % 1024 == 0 && kWeightBytes % 1024 == 0, "swizzled tiles");
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kAhead = kStages - 1;
  // Scales come for eight groups of columns at a time.
  static constexpr int kScaleGroups = 8, kScaleBytes = kInt4 ? kRows * 16 : 0;
  static_assert(kScaleGroups % kParts == 0);
  // Those of the stages that load, of this one, and of the one before.
  static constexpr int kScaleSlots = kStages * kParts <= 8 ? 2 : kStages * kParts <= 24 ? 4 : 8;
  static_assert(kStages * kParts <= (kScaleSlots - 1) * kScaleGroups);
  static constexpr int kExchangeBytes = kSplit ? 2 * (kGroups - 1) * 64 * kTokens * 4 : 0;
  static constexpr int kSumStride = kRows + 4;  // the four lanes that share rows write other banks
  static_assert(kTokens * kSumStride * 4 <= kStages * kStageBytes, "sums go where stages were");
  static constexpr int kSharedBytes =
      kStages * kStageBytes + kScaleSlots * kScaleBytes + kExchangeBytes + 1024;
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 << 10);
};

// The 16-bit operand of 32 columns, from where they stand in shared memory.
template <class Tile>
struct IntegerRows {
  using X = typename Tile::X;
  // Of this lane: its row and that + 8; of int4 this lane's 16 bytes of them.
  const unsigned char* row[2];
  int lane;
  uint4 packed[2];

  __device__ void load() {
    if constexpr (Tile::kInt4)
#pragma unroll
      for (int e = 0; e < 2; ++e) packed[e] = *reinterpret_cast<const uint4*>(row[e]);
  }
  // Two products along K, of columns 32 q and on.
  __device__ void widen(int q, std::uint32_t (&w)[2][4]) const {
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        if constexpr (Tile::kInt4) {
          const uint4 p = packed[e];
          const std::uint32_t word = q == 0 ? p.x : q == 1 ? p.y : q == 2 ? p.z : p.w;
          w[s][e] = int4_pair<X>(word, s);
          w[s][2 + e] = int4_pair<X>(word, 2 + s);
        } else {
          const unsigned char* const at = row[e] + ((2 * q + s) ^ lane / 4) * 16 + lane % 4 * 2;
          w[s][e] = int8_pair<X>(*reinterpret_cast<const std::uint16_t*>(at));
          w[s][2 + e] = int8_pair<X>(*reinterpret_cast<const std::uint16_t*>(at + 8));
        }
      }
  }
};

// part = the products of 128 columns with N tokens.
template <class Tile, int N>
__device__ inline void multiply_group(float (&part)[N / 2], IntegerRows<Tile>& rows,
                                      std::uint32_t tokens) {
  rows.load();
  std::uint32_t w[2][2][4];  // the tensor core reads one half while the other is written
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    if (q >= 2) {
      ptx::wgmma_wait<1>();
      ptx::hold_registers(w[q % 2]);
    }
    rows.widen(q, w[q % 2]);
    const std::uint64_t x = ptx::swizzled_tile(tokens + q / 2 * Tile::kTokenBlockBytes) + q % 2 * 4;
    ptx::hold_registers(w[q % 2]);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < 2; ++s)
      ptx::WgmmaRegisters<typename Tile::X, N>::template run<false>(part, w[q % 2][s], x + 2 * s,
                                                                    q > 0 || s > 0);
    ptx::wgmma_commit();
  }
  ptx::wgmma_wait<0>();
  ptx::hold_registers(w);
  ptx::hold_registers(part);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gemm_integer_kernel(const GemmArgs a) {
  using X = typename Tile::X;
  constexpr int kTokens = Tile::kTokens, kStages = Tile::kStages, kAhead = Tile::kAhead;
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t shared = (ptx::shared_address(shared_raw) + 1023) & ~1023u;
  unsigned char* const shared_data = shared_raw + (shared - ptx::shared_address(shared_raw));
  constexpr int kScalesAt = kStages * Tile::kStageBytes;
  float4* const exchange =
      reinterpret_cast<float4*>(shared_data + kScalesAt + Tile::kScaleSlots * Tile::kScaleBytes);

  const BlockTile block((a.n + Tile::kOutputs - 1) / Tile::kOutputs, a.max_tiles);
  const int n0 = block.row * Tile::kOutputs;
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int groups = (a.k + Tile::kGroupColumns - 1) / Tile::kGroupColumns;
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
  const auto is_up = [](int row) { return Tile::kSwiglu && row >= Tile::kOutputs; };
  // Of rows that are not there another is loaded, and its results are not stored.
  const auto output_of = [&](int row) {
    return min(a.n - 1, n0 + row - (is_up(row) ? Tile::kOutputs : 0));
  };

  // This thread's 16 bytes of some weight rows, of the next stage to load.
  constexpr int kRowChunks = Tile::kRowBytes / 16, kChunks = Tile::kParts * kRowChunks;
  constexpr int kRowStep = Tile::kThreads / kChunks, kWeightLoads = Tile::kRows / kRowStep;
  static_assert(kRowStep % 8 == 0, "rows of one thread swizzle alike");
  const int w_chunk = int(threadIdx.x) % kChunks, w_row = int(threadIdx.x) / kChunks;
  const std::uint8_t* weight_from[kWeightLoads];
#pragma unroll
  for (int j = 0; j < kWeightLoads; ++j) {
    const int row = w_row + j * kRowStep;
    const WeightRef& w = is_up(row) ? up : weight;
    weight_from[j] =
        static_cast<const std::uint8_t*>(w.data) + output_of(row) * w.stride + w_chunk * 16;
  }
  const int w_swizzle = Tile::kInt4 ? 0 : w_row & 7;
  const std::uint32_t weight_to = shared + w_chunk / kRowChunks * Tile::kPartBytes +
                                  w_row * Tile::kRowBytes +
                                  ((w_chunk % kRowChunks) ^ w_swizzle) * 16;
  // And its row's scales, of the next eight groups.
  static_assert(Tile::kRows <= Tile::kThreads);
  const bool has_scales = Tile::kInt4 && int(threadIdx.x) < Tile::kRows;
  const __nv_bfloat16* scale_from = nullptr;
  if (has_scales)
    scale_from =
        reinterpret_cast<const __nv_bfloat16*>((is_up(int(threadIdx.x)) ? up : weight).scale) +
        output_of(int(threadIdx.x)) * a.w_scale_stride;
  // Rows end within a stage: of int8 anywhere, of int4 after its first half, whose other half
  // nobody reads.
  const auto copy = [&](std::uint32_t to, const void* from, int left, bool whole) {
    if (whole)
      ptx::copy16(to, from);
    else if (left > 0)
      ptx::copy16(to, from, min(16, left));
    else if (!Tile::kInt4)
      ptx::store16(to, {0, 0, 0, 0});
  };
  const auto load_weights = [&](int i) {
    const bool whole = (i + 1) * Tile::kK <= a.k || (Tile::kInt4 && Tile::kParts == 1);
    const int left = (a.k - i * Tile::kK) * Tile::kBits / 8 - w_chunk * 16;
    const std::uint32_t to = weight_to + (i % kStages) * Tile::kStageBytes;
#pragma unroll
    for (int j = 0; j < kWeightLoads; ++j) {
      copy(to + j * kRowStep * Tile::kRowBytes, weight_from[j], left, whole);
      weight_from[j] += Tile::kK * Tile::kBits / 8;
    }
    if constexpr (Tile::kInt4) {
      const int g = i * Tile::kParts;
      if (g % Tile::kScaleGroups == 0 && has_scales) {
        ptx::copy16(shared + kScalesAt +
                        g / Tile::kScaleGroups % Tile::kScaleSlots * Tile::kScaleBytes +
                        int(threadIdx.x) * 16,
                    scale_from, min(16, (groups - g) * 2));
        scale_from += Tile::kScaleGroups;
      }
    }
  };

  // Weights do not change during a step: they need not wait for the predecessor.
  for (int i = 0; i < min(kAhead, k_tiles); ++i) load_weights(i);
  if (!grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
  }
  constexpr int kTokenChunks = Tile::kK / 8, kTokenStep = Tile::kThreads / kTokenChunks;
  constexpr int kTokenLoads = (kTokens + kTokenStep - 1) / kTokenStep;
  static_assert(kTokenStep % 8 == 0, "tokens of one thread swizzle alike");
  const int x_chunk = int(threadIdx.x) % kTokenChunks, x_first = int(threadIdx.x) / kTokenChunks;
  const X* token_from[kTokenLoads];
#pragma unroll
  for (int j = 0; j < kTokenLoads; ++j) {
    const std::int64_t slot = tile.first + min(x_first + j * kTokenStep, tile.count - 1);
    token_from[j] =
        static_cast<const X*>(a.x) + (a.rows ? a.rows[slot] : slot) * a.x_stride + x_chunk * 8;
  }
  const std::uint32_t token_to = shared + Tile::kWeightBytes +
                                 x_chunk / 8 * Tile::kTokenBlockBytes + x_first * 128 +
                                 ((x_chunk ^ x_first) & 7) * 16;
  const auto load_tokens = [&](int i) {
    const bool whole = (i + 1) * Tile::kK <= a.k || (Tile::kInt4 && Tile::kParts == 1);
    const int left = (a.k - i * Tile::kK - x_chunk * 8) * 2;
    const std::uint32_t to = token_to + (i % kStages) * Tile::kStageBytes;
#pragma unroll
    for (int j = 0; j < kTokenLoads; ++j) {
      if (x_first + j * kTokenStep < tile.count)
        copy(to + j * kTokenStep * 128, token_from[j], left, whole);
      token_from[j] += Tile::kK;
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < k_tiles) load_tokens(i);
    ptx::copy_commit();
  }

  const int group = int(threadIdx.x) / 128;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int row0 = (Tile::kSplit ? warp % 4 : warp) * 16 + lane / 4;  // its rows: this and + 8
  float* const sums = reinterpret_cast<float*>(shared_data);          // [token][weight row]

  const auto multiply = [&]<int N>(std::integral_constant<int, N>) {
    float sum[N / 2] = {};
    const auto add = [&](const float(&part)[N / 2], int g) {
      float scale[2] = {1, 1};
      if constexpr (Tile::kInt4)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          scale[e] = widen(*reinterpret_cast<const __nv_bfloat16*>(
              shared_data + kScalesAt +
              g / Tile::kScaleGroups % Tile::kScaleSlots * Tile::kScaleBytes + (row0 + 8 * e) * 16 +
              g % Tile::kScaleGroups * 2));
#pragma unroll
      for (int i = 0; i < N / 2; ++i) sum[i] = fmaf(part[i], scale[i % 4 / 2], sum[i]);
    };
    // The other warpgroups' parts of stage i, which the first adds after its own, in order.
    const auto exchanged = [&](int i, int from, int j) -> float4& {
      return exchange[(((i % 2) * (Tile::kGroups - 1) + from - 1) * (kTokens / 8) + j) * 128 +
                      int(threadIdx.x) % 128];
    };
    const auto add_others = [&](int i) {
#pragma unroll
      for (int from = 1; from < Tile::kGroups; ++from) {
        const int g = i * Tile::kParts + from;
        if (g >= groups) return;
        float part[N / 2];
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          const float4 four = exchanged(i, from, j);
          part[4 * j] = four.x;
          part[4 * j + 1] = four.y;
          part[4 * j + 2] = four.z;
          part[4 * j + 3] = four.w;
        }
        add(part, g);
      }
    };
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
      const int stage = (i % kStages) * Tile::kStageBytes;
#pragma unroll
      for (int p = 0; p < (Tile::kSplit ? 1 : Tile::kParts); ++p) {
        const int from_part = Tile::kSplit ? group : p, g = i * Tile::kParts + from_part;
        if (g >= groups) break;
        const unsigned char* const from = shared_data + stage + from_part * Tile::kPartBytes +
                                          row0 * Tile::kRowBytes +
                                          (Tile::kInt4 ? lane % 4 * 16 : 0);
        IntegerRows<Tile> rows{{from, from + 8 * Tile::kRowBytes}, lane, {}};
        float part[N / 2];
        multiply_group<Tile, N>(
            part, rows,
            shared + stage + Tile::kWeightBytes + from_part * 2 * Tile::kTokenBlockBytes);
        if (!Tile::kSplit || group == 0) {
          if (Tile::kSplit && i > 0) add_others(i - 1);
          add(part, g);
        } else {
#pragma unroll
          for (int j = 0; j < N / 8; ++j)
            exchanged(i, group, j) = {part[4 * j], part[4 * j + 1], part[4 * j + 2],
                                      part[4 * j + 3]};
        }
      }
    }
    ptx::copy_wait<0>();
    __syncthreads();
    if (!Tile::kSplit || group == 0) {
      if (Tile::kSplit && k_tiles > 0) add_others(k_tiles - 1);
      const auto scale_of = [&](int row) {
        if constexpr (Tile::kInt4) {
          return 1.0f;
        } else {
          return (is_up(row) ? up : weight).scale[output_of(row)];
        }
      };
      const float row_scale[2] = {scale_of(row0), scale_of(row0 + 8)};
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        sums[(i / 4 * 8 + 2 * (lane % 4) + i % 2) * Tile::kSumStride + row0 + 8 * (i % 4 / 2)] =
            sum[i] * row_scale[i % 4 / 2];
    }
  };
  // Tokens that are not there are not multiplied, eight or sixteen at a time.
  const auto multiply_least = [&]<int N, int... kMore>(auto&& self,
                                                       std::integer_sequence<int, N, kMore...>) {
    if constexpr (sizeof...(kMore) > 0)
      if (tile.count > N) return self(self, std::integer_sequence<int, kMore...>{});
    multiply(std::integral_constant<int, N>{});
  };
  if constexpr (kTokens == 8)
    multiply_least(multiply_least, std::integer_sequence<int, 8>{});
  else if constexpr (kTokens == 16)
    multiply_least(multiply_least, std::integer_sequence<int, 8, 16>{});
  else if constexpr (kTokens == 32)
    multiply_least(multiply_least, std::integer_sequence<int, 8, 16, 32>{});
  else if constexpr (kTokens == 64)
    multiply_least(multiply_least, std::integer_sequence<int, 16, 32, 48, 64>{});
  else
    multiply_least(multiply_least, std::integer_sequence<int, 64, 128>{});
  __syncthreads();

  // From shared memory a warp writes consecutive outputs of one token.
  constexpr int kPacks = Tile::kOutputs / 4;
  for (int item = int(threadIdx.x); item < tile.count * kPacks; item += Tile::kThreads) {
    const int token = item / kPacks, first = item % kPacks * 4;
    const float* const from = sums + token * Tile::kSumStride + first;
    auto value = load_pack<4>(from);
    if constexpr (Tile::kSwiglu) {
      const auto up_value = load_pack<4>(from + Tile::kOutputs);
#pragma unroll
      for (int j = 0; j < 4; ++j) value.v[j] = swiglu(value.v[j], up_value.v[j]);
    }
    store_outputs(a, tile.first + token, n0 + first, value);
  }
}

// As many stages as fit: of 12 KB (int4, 8 tokens) to 48 KB.
template <class X, int kBits, bool kSwiglu, int kTokens, int kGroups, bool kSplit, int kParts,
          int kBlocks>
void start_gemm_integer_shape(cudaStream_t stream, const Gemm& g) {
  constexpr int kRows = kSplit ? 64 : 64 * kGroups;
  constexpr int kStageKb = kParts * (kRows * kBits / 64 + kTokens / 4);
  constexpr int kOtherKb = (kBits == 4 ? (kParts == 1   ? 2
                                          : kParts == 4 ? 8
                                                        : 4) *
                                             kRows / 64
                                       : 0) +
                           (kSplit ? (kGroups - 1) * kTokens / 2 : 0);
  constexpr int kStages = (228 / kBlocks - 2 - kOtherKb) / kStageKb;
  using Tile = IntegerTile < X, kBits, kSwiglu, kTokens, kGroups, kSplit, kParts,
        kStages<8 ? kStages : 8, kBlocks>;
  OSTRO_CHECK(g.token_tile == kTokens, "tiles of ", g.token_tile, " tokens, not ", kTokens);
  launch(stream,
         {.blocks = ceil_div<std::int64_t>(g.args.n, Tile::kOutputs) * g.args.max_tiles,
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_integer_kernel<Tile>, g.args);
}

template <class X, int kBits>
void start_gemm_integer_swiglu(cudaStream_t stream, const Gemm& g) {
  constexpr bool kInt4 = kBits == 4;
  switch (g.token_tile) {
    case 8:
      return start_gemm_integer_shape < X, kBits, true, 8, 2, false, 1, kInt4 ? 4 : 3 > (stream, g);
    case 16:
      return start_gemm_integer_shape < X, kBits, true, 16, 2, false, kInt4 ? 2 : 1,
             2 > (stream, g);
    case 32:
      return start_gemm_integer_shape<X, kBits, true, 32, 2, false, 1, 2>(stream, g);
    case 64:
      return start_gemm_integer_shape<X, kBits, true, 64, 4, false, 1, 1>(stream, g);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

template <class X, int kBits>
void start_gemm_integer_plain(cudaStream_t stream, const Gemm& g, int processors) {
  // A multiprocessor that gets one block alone needs as much in flight from it as from two.
  const bool alone = ceil_div<std::int64_t>(g.args.n, 64) * g.args.max_tiles <= processors;
  switch (g.token_tile) {
    case 8:
      return alone ? start_gemm_integer_shape<X, kBits, false, 8, 4, true, 4, 1>(stream, g)
                   : start_gemm_integer_shape<X, kBits, false, 8, 2, true, 2, 2>(stream, g);
    case 16:
      return start_gemm_integer_shape<X, kBits, false, 16, 2, true, 2, 2>(stream, g);
    case 32:
      return start_gemm_integer_shape<X, kBits, false, 32, 2, true, 2, 2>(stream, g);
    case 64:
      return start_gemm_integer_shape<X, kBits, false, 64, 4, false, 1, 1>(stream, g);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

template <int kBits>
void start_gemm_integer_type(cudaStream_t stream, const Gemm& g, int processors) {
  visit_dtype<f16, bf16>(g.x_type, "the GEMM of integer weights", [&]<class T>() {
    g.swiglu ? start_gemm_integer_swiglu<device_t<T>, kBits>(stream, g)
             : start_gemm_integer_plain<device_t<T>, kBits>(stream, g, processors);
  });
}

}  // namespace ostro::cuda
