// The GEMM of integer weights and 16-bit activations: a kernel that gemm_int4.cu and gemm_int8.cu
// instantiate.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N): a warp turns integers
//           into the 16-bit operand of mma.m16n8k16 in its registers, exactly.
// Numbers:  int4: the products of a group of 128 columns are summed by the tensor core, the groups
//           added in f32 times their scales. int8: one sum along K, times the row's scale. Warps 0
//           to 3 take the even blocks of 128 columns, 4 to 7 the odd ones; the two sums are added
//           last. None of it depends on the tokens.
// Grid:     a block of 256 threads for 64 outputs (with SwiGLU 64 gate and 64 up rows) and 8 .. 64
//           tokens. Tokens that are not there are not multiplied, eight at a time.
// Pipeline: 16-byte cp.async into kStages stages of 256 columns. All scales of the rows come first.
//           Weights of a dense layer start to load before the predecessor has ended.
// Traffic:  weights once for 64 tokens, tokens once for each block of rows, from L2.
// Bound by: memory up to about 32 tokens an expert; above, by the tensor core, which mma does not
//           fill as wgmma would.
// Floor on an H100: n k / 2 (int4) or n k (int8) bytes / 3.15e12 s.
// Measured (H100 80 GB HBM3, `ostro bench latency`, 32 layers of Mixtral 8x7B): a step of 1, 8, 32,
//           64, 128 tokens takes 6.2, 12.7, 21.0, 28.3, 36.1 ms with int4, 7.5, 17.5, 23.8, 31.2,
//           38.3 ms with int8; a prompt of 2048 357 and 375 ms.
#pragma once

#include "backends/cuda/kernels/gemm.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mma.cuh"
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
  return subtract2<X>(((word >> 4 * i) & 0x000f000f) | kBase, kOffset);
}

// Bytes 2 i and 2 i + 1 of a word, 128 added to each, as two X.
template <class X>
__device__ inline std::uint32_t int8_pair(std::uint32_t word, int i) {
  if constexpr (std::is_same_v<X, __half>) {
    return subtract2<X>(__byte_perm(word, 0x64646464, i == 0 ? 0x4140 : 0x4342), 0x64806480);
  } else {
    constexpr std::uint32_t kBase = 0x4b000000;  // 2^23 in f32
    const auto number = [&](unsigned selector) {
      return __uint_as_float(__byte_perm(word, kBase, selector)) - 8388736.0f;
    };
    const __nv_bfloat162 pair =
        __floats2bfloat162_rn(number(i == 0 ? 0x7440 : 0x7442), number(i == 0 ? 0x7441 : 0x7443));
    return reinterpret_cast<const std::uint32_t&>(pair);
  }
}

// kBlocks of kStages stages fit on a multiprocessor.
template <class X_, int kBits_, bool kSwiglu_, int kTokens_, int kStages_, int kBlocks_>
struct IntegerTile {
  using X = X_;
  static constexpr int kBits = kBits_, kTokens = kTokens_, kStages = kStages_, kBlocks = kBlocks_;
  static constexpr bool kSwiglu = kSwiglu_, kInt4 = kBits == 4;
  static constexpr int kThreads = 256;
  static constexpr int kOutputs = 64, kMatrices = kSwiglu ? 2 : 1, kRows = kOutputs * kMatrices;
  static constexpr int kHalf = 128;  // columns of a warp in a stage
  static_assert(kHalf == quant::kInt4Group);
  static constexpr int kK = 2 * kHalf;
  static constexpr int kRowBytes = kK * kBits / 8, kTokenRowBytes = kK * 2;
  static constexpr int kWeightBytes = kRows * kRowBytes, kTokenBytes = kTokens * kTokenRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static constexpr int kAhead = kStages - 1;
  static constexpr int kSumStride = kOutputs + 4;
  static_assert(kMatrices * kTokens * kSumStride * 4 <= kStages * kStageBytes,
                "sums go where stages were");

  // Of one row; + 16: eight rows that are read at once write other banks.
  __host__ __device__ static int scale_bytes(int k) {
    return kInt4 ? (k / kHalf * 2 + 15) / 16 * 16 + 16 : 0;
  }
  static std::int64_t shared_bytes(int k) {
    return kStages * kStageBytes + std::int64_t(kRows) * scale_bytes(k);
  }
  // Where chunk c (16 bytes) of a row stands, so that the lanes that read together have all banks.
  __device__ static int weight_chunk(int row, int c) {
    return kInt4 ? c ^ (row & 1) << 2 : c ^ (row & 3) << 1;
  }
  __device__ static int token_chunk(int row, int c) {
    return kInt4 ? c ^ (row & 7) : c ^ (row & 1) << 2;
  }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gemm_integer_kernel(const GemmArgs a) {
  using X = typename Tile::X;
  constexpr int kTokens = Tile::kTokens, kStages = Tile::kStages, kAhead = Tile::kAhead;
  extern __shared__ __align__(128) unsigned char shared_data[];
  const std::uint32_t shared = ptx::shared_address(shared_data);
  unsigned char* const scales = shared_data + kStages * Tile::kStageBytes;
  const int scale_bytes = Tile::scale_bytes(a.k);

  const BlockTile block((a.n + Tile::kOutputs - 1) / Tile::kOutputs, a.max_tiles);
  const int n0 = block.row * Tile::kOutputs;
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
  const auto weight_row = [&](int row, const WeightRef*& w) {  // -1: there is none
    const bool is_up = Tile::kSwiglu && row >= Tile::kOutputs;
    w = is_up ? &up : &weight;
    const int output = n0 + row % Tile::kOutputs;
    return output < a.n ? output : -1;
  };

  const auto load_weights = [&](int i) {
    constexpr int kChunks = Tile::kRowBytes / 16, kColumns = 128 / Tile::kBits;  // of a chunk
#pragma unroll
    for (int j = 0; j < Tile::kRows * kChunks / Tile::kThreads; ++j) {
      const int item = int(threadIdx.x) + j * Tile::kThreads;
      const int row = item / kChunks, chunk = item % kChunks;
      const WeightRef* w;
      const int output = weight_row(row, w);
      if (output < 0) continue;
      const int left = (a.k - i * Tile::kK - chunk * kColumns) * Tile::kBits / 8;
      const int bytes = max(0, min(16, left));
      const std::int64_t at = bytes > 0 ? std::int64_t(i) * Tile::kRowBytes + chunk * 16 : 0;
      ptx::copy16(shared + (i % kStages) * Tile::kStageBytes + row * Tile::kRowBytes +
                      Tile::weight_chunk(row, chunk) * 16,
                  static_cast<const std::uint8_t*>(w->data) + output * w->stride + at, bytes);
    }
  };
  const auto load_scales = [&] {
    const int groups = a.k / Tile::kHalf, chunks = (groups + 7) / 8;
    for (int item = int(threadIdx.x); item < Tile::kRows * chunks; item += Tile::kThreads) {
      const int row = item / chunks, chunk = item % chunks;
      const WeightRef* w;
      const int output = weight_row(row, w);
      if (output < 0) continue;
      const auto* const from =
          reinterpret_cast<const __nv_bfloat16*>(w->scale) + output * a.w_scale_stride + chunk * 8;
      unsigned char* const to = scales + row * scale_bytes + chunk * 16;
      const int count = min(8, groups - chunk * 8);
      if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
        ptx::copy16(ptx::shared_address(to), from, count * 2);
      } else {
        for (int g = 0; g < count; ++g) reinterpret_cast<__nv_bfloat16*>(to)[g] = from[g];
      }
    }
  };

  // Weights do not change during a step: they need not wait for the predecessor.
  if constexpr (Tile::kInt4) load_scales();
  for (int i = 0; i < min(kAhead, k_tiles); ++i) load_weights(i);
  if (!grouped) {
    begin_kernel();
    tile = token_tile_of(a, block.token, kTokens);
  }
  constexpr int kTokenChunks = Tile::kTokenRowBytes / 16;  // 32: a warp loads a row
  constexpr int kTokenLoads = kTokens / (Tile::kThreads / kTokenChunks);
  const int token_chunk = int(threadIdx.x) % kTokenChunks;
  const X* token_from[kTokenLoads];
#pragma unroll
  for (int j = 0; j < kTokenLoads; ++j) {
    const int row = int(threadIdx.x) / kTokenChunks + j * (Tile::kThreads / kTokenChunks);
    const std::int64_t slot = tile.first + row;
    token_from[j] = row < tile.count
                        ? static_cast<const X*>(a.x) + (a.rows ? a.rows[slot] : slot) * a.x_stride +
                              token_chunk * 8
                        : nullptr;
  }
  const auto load_tokens = [&](int i) {
    const int bytes = max(0, min(16, (a.k - i * Tile::kK - token_chunk * 8) * 2));
    const std::uint32_t stage = shared + (i % kStages) * Tile::kStageBytes + Tile::kWeightBytes;
#pragma unroll
    for (int j = 0; j < kTokenLoads; ++j) {
      const int row = int(threadIdx.x) / kTokenChunks + j * (Tile::kThreads / kTokenChunks);
      if (token_from[j])
        ptx::copy16(stage + row * Tile::kTokenRowBytes + Tile::token_chunk(row, token_chunk) * 16,
                    bytes > 0 ? token_from[j] + std::int64_t(i) * Tile::kK : a.x, bytes);
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < k_tiles) load_tokens(i);
    ptx::copy_commit();
  }

  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int half = warp / 4;                  // its columns of a stage
  const int row0 = warp % 4 * 16 + lane / 4;  // its rows: this and + 8
  const int column = lane % 4;                // of four lanes
  constexpr int kEights = kTokens / 8;
  float sum[Tile::kMatrices][kEights][4] = {};

  for (int i = 0; i < k_tiles; ++i) {
    ptx::copy_wait<kAhead - 1>();
    // Stage i is there, and every warp has done with the stage that is loaded next.
    __syncthreads();
    if (i + kAhead < k_tiles) {
      load_weights(i + kAhead);
      load_tokens(i + kAhead);
    }
    ptx::copy_commit();
    if (i * Tile::kK + half * Tile::kHalf >= a.k) continue;
    const unsigned char* const stage = shared_data + (i % kStages) * Tile::kStageBytes;
    const std::uint32_t tokens = shared + (i % kStages) * Tile::kStageBytes + Tile::kWeightBytes;
    const auto weights_at = [&](int matrix, int e, int chunk) {
      const int row = matrix * Tile::kOutputs + row0 + 8 * e;
      return stage + row * Tile::kRowBytes + Tile::weight_chunk(row, chunk) * 16;
    };

    uint4 packed[Tile::kMatrices][2];  // of int4: this lane's 32 columns of two rows
    if constexpr (Tile::kInt4) {
#pragma unroll
      for (int m = 0; m < Tile::kMatrices; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          packed[m][e] = *reinterpret_cast<const uint4*>(weights_at(m, e, half * 4 + column));
    }
    float part[Tile::kMatrices][kEights][4] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {  // 32 columns, two products along K
      std::uint32_t w[Tile::kMatrices][2][4];
#pragma unroll
      for (int m = 0; m < Tile::kMatrices; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if constexpr (Tile::kInt4) {
            const uint4 p = packed[m][e];
            const std::uint32_t word = q == 0 ? p.x : q == 1 ? p.y : q == 2 ? p.z : p.w;
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              w[m][s][e] = int4_pair<X>(word, s);
              w[m][s][2 + e] = int4_pair<X>(word, 2 + s);
            }
          } else {
            // Columns 8 c .. 8 c + 7 of lane c stand for those that the instruction gives it; the
            // tokens are read alike.
            const int chunk = half * 8 + q * 2 + column / 2;
            const uint2 p =
                *reinterpret_cast<const uint2*>(weights_at(m, e, chunk) + column % 2 * 8);
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              const std::uint32_t word = (s == 0 ? p.x : p.y) ^ 0x80808080;
              w[m][s][e] = int8_pair<X>(word, 0);
              w[m][s][2 + e] = int8_pair<X>(word, 1);
            }
          }
        }
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        if (8 * j >= tile.count) break;
        std::uint32_t x[4];
        if constexpr (Tile::kInt4) {
          const int row = 8 * j + lane % 8, chunk = half * 16 + q * 4 + lane / 8;
          ptx::load_matrices(
              x, tokens + row * Tile::kTokenRowBytes + Tile::token_chunk(row, chunk) * 16);
        } else {
          const int row = 8 * j + lane / 4, chunk = half * 16 + q * 4 + column;
          const uint4 v = *reinterpret_cast<const uint4*>(stage + Tile::kWeightBytes +
                                                          row * Tile::kTokenRowBytes +
                                                          Tile::token_chunk(row, chunk) * 16);
          x[0] = v.x;
          x[1] = v.y;
          x[2] = v.z;
          x[3] = v.w;
        }
#pragma unroll
        for (int m = 0; m < Tile::kMatrices; ++m)
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            if constexpr (Tile::kInt4)
              ptx::mma<X>(part[m][j], w[m][s], x[2 * s], x[2 * s + 1]);
            else
              ptx::mma<X>(sum[m][j], w[m][s], x[2 * s], x[2 * s + 1]);
          }
      }
    }
    if constexpr (Tile::kInt4) {
#pragma unroll
      for (int m = 0; m < Tile::kMatrices; ++m) {
        float scale[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          scale[e] = widen(reinterpret_cast<const __nv_bfloat16*>(
              scales + (m * Tile::kOutputs + row0 + 8 * e) * scale_bytes)[2 * i + half]);
#pragma unroll
        for (int j = 0; j < kEights; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sum[m][j][e] = fmaf(part[m][j][e], scale[e / 2], sum[m][j][e]);
      }
    }
  }
  ptx::copy_wait<0>();
  __syncthreads();

  // [matrix][token][output]: the odd columns' sums, to which the even columns' are added.
  float* const sums = reinterpret_cast<float*>(shared_data);
  const auto each = [&](auto&& fn) {
#pragma unroll
    for (int j = 0; j < kEights; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        fn(j, e, sums + (8 * j + 2 * column + e % 2) * Tile::kSumStride + row0 + 8 * (e / 2));
  };
  constexpr int kMatrixFloats = kTokens * Tile::kSumStride;
  if (half == 1)
    each([&](int j, int e, float* at) {
#pragma unroll
      for (int m = 0; m < Tile::kMatrices; ++m) at[m * kMatrixFloats] = sum[m][j][e];
    });
  __syncthreads();
  if (half == 0) {
    float row_scale[Tile::kMatrices][2];
#pragma unroll
    for (int m = 0; m < Tile::kMatrices; ++m)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const WeightRef* w;
        const int output = weight_row(m * Tile::kOutputs + row0 + 8 * e, w);
        row_scale[m][e] = Tile::kInt4 ? 1 : output < 0 ? 0 : w->scale[output];
      }
    each([&](int j, int e, float* at) {
      const auto whole = [&](int m) {
        return (sum[m][j][e] + at[m * kMatrixFloats]) * row_scale[m][e / 2];
      };
      if constexpr (Tile::kSwiglu)
        *at = swiglu(whole(0), whole(1));
      else
        *at = whole(0);
    });
  }
  __syncthreads();
  // From shared memory a warp writes consecutive outputs of one token.
  constexpr int kPacks = Tile::kOutputs / 4;
  for (int item = int(threadIdx.x); item < tile.count * kPacks; item += Tile::kThreads) {
    const int token = item / kPacks, first = item % kPacks * 4;
    store_outputs(a, tile.first + token, n0 + first,
                  load_pack<4>(sums + token * Tile::kSumStride + first));
  }
}

template <class Tile>
void start_gemm_integer(cudaStream_t stream, const Gemm& g) {
  constexpr std::int64_t kMostShared = 227 << 10;
  const std::int64_t shared = Tile::shared_bytes(g.args.k);
  OSTRO_SUPPORTED(shared <= kMostShared,
                  "int4 weights on CUDA have kernels for rows whose scales "
                  "fit shared memory, not for ",
                  g.args.k, " columns");
  launch(stream,
         {.blocks = ceil_div<std::int64_t>(g.args.n, Tile::kOutputs) * g.args.max_tiles,
          .threads = Tile::kThreads,
          .shared_bytes = shared},
         gemm_integer_kernel<Tile>, g.args);
}

// Stages of 20 KB (int4 with SwiGLU and 8 tokens) to 64 KB: two blocks on a multiprocessor where
// they have three stages or more each.
template <class X, int kBits, bool kSwiglu>
void start_gemm_integer_tile(cudaStream_t stream, const Gemm& g) {
  constexpr int kWeightKb = (kSwiglu ? 2 : 1) * kBits * 2;
  constexpr int kTwo = kSwiglu ? 100 : 97, kOne = 193;  // KB, beside the scales
  constexpr auto stages = [](int tokens, int kb) { return kb / (kWeightKb + tokens / 2); };
  switch (g.token_tile) {
    case 8:
      return start_gemm_integer<IntegerTile<X, kBits, kSwiglu, 8, stages(8, kTwo), 2>>(stream, g);
    case 16:
      return start_gemm_integer<IntegerTile<X, kBits, kSwiglu, 16, stages(16, kTwo), 2>>(stream, g);
    case 32:
      return start_gemm_integer<IntegerTile<X, kBits, kSwiglu, 32, stages(32, kOne), 1>>(stream, g);
    case 64:
      return start_gemm_integer<IntegerTile<X, kBits, kSwiglu, 64, stages(64, kOne), 1>>(stream, g);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

template <int kBits>
void start_gemm_integer_type(cudaStream_t stream, const Gemm& g) {
  visit_dtype<f16, bf16>(g.x_type, "the GEMM of integer weights", [&]<class T>() {
    g.swiglu ? start_gemm_integer_tile<device_t<T>, kBits, true>(stream, g)
             : start_gemm_integer_tile<device_t<T>, kBits, false>(stream, g);
  });
}

}  // namespace ostro::cuda
