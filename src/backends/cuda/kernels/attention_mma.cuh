// ops::PagedAttention on CUDA with tensor cores. The contract is in ops/attention.h.
//
// Rows:     the query heads that share a key head, of consecutive tokens of one request: row i of a
//           request is head i % group of its token i / group. A warp has 16.
// Grid:     tiles of rows x key heads x splits, where attention_decode.cuh and attention_wgmma.cuh
//           have no kernel. Few rows a request: one warp a block, 64 KB of keys and values in
//           flight each (32 KB of e4m3), three blocks a multiprocessor (five); with few blocks, one
//           for each part, joined by a second kernel. More rows: four warps share each tile of 64
//           positions.
// Pipeline: 16-byte cp.async of the next tile's pages into swizzled shared memory, mma.m16n8k16 on
//           this one; e4m3 is widened between shared memory and registers.
// Order:    attention_rows.cuh.
// Traffic:  4 * head_dim bytes a position and key head; a prompt's again for each 64 rows, from L2.
// Bound by: memory when decoding; tensor cores and shared memory when prefilling.
// Floor on an H100: 4 * kv_heads * head_dim * positions / 3.15e12 s, 1.3 us at 1024 positions of 8
//           heads of 128; prefill 4 * heads * head_dim * tokens^2 / 2 / 757e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, bf16, 32 heads on 8 of 128): decoding 1 request of
//           1024 positions 18.6 us, 64: 115 us (74 %), 128: 209 us (82 %); of 8192 positions 1:
//           26.5 us, 64: 780 us (87 %), 128: 1527 us (89 %), on an e4m3 cache 865 us (79 %); 1024
//           requests of 192: 312 us (82 %). On an H200 with e4m3 769 and 171 us.
#pragma once

#include "backends/cuda/kernels/attention_join.cuh"
#include "backends/cuda/kernels/attention_rows.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/cp_async.cuh"
#include "backends/cuda/ptx/mma.cuh"

namespace ostro::cuda {

constexpr int kAttentionStages = 2;

template <class C, int kHead, int kWarps>
struct AttentionLayout {
  static constexpr int kElements = 16 / sizeof(C);      // of 16 bytes
  static constexpr int kChunks = kHead / kElements;     // of 16 bytes, in a row
  static constexpr int kSixteenBytes = 16 * sizeof(C);  // of 16 columns
  static constexpr int kRowBytes = kHead * sizeof(C);
  static constexpr int kTileBytes = kPositions * kRowBytes;  // keys or values
  static constexpr int kRowsBytes =
      kAttentionStages * kPositions * 4;  // where the rows of a tile lie
  static constexpr int kJoinedBytes = kWarps * kWarpRows * kHead * 4;
  static constexpr int kSharedBytes = 2 * kAttentionStages * kTileBytes + kRowsBytes + kJoinedBytes;

  // Where a chunk of a row stands in a tile: eight rows that ldmatrix reads are in other banks.
  __device__ static std::uint32_t at(unsigned p, unsigned chunk) {
    const unsigned swizzle = kRowBytes == 64 ? p / 2 % 4 : p % 8;
    return p * kRowBytes + ((chunk ^ swizzle) << 4);
  }
  // The address `positions` (a multiple of 8) and `chunks` (bits that its own chunk lacks) after
  // one of at() in a tile, which stands at a multiple of kRowBytes. Of the sum of a tile and at()
  // the compiler keeps every at() in a register through the loop; here there is none to keep.
  __device__ static std::uint32_t further(std::uint32_t address, int positions, int chunks) {
    return (address ^ chunks << 4) + positions * kRowBytes;
  }
};

// C: the cache's elements, T or e4m3. The latter are widened on their way from shared memory to
// registers; columns then take other places in the products, the same in both operands.
template <class T, class C, int kHead, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) attention_mma_kernel(const AttentionArgs a) {
  using L = AttentionLayout<C, kHead, kWarps>;
  using V = factor_t<T, C>;
  constexpr bool kWiden = !std::is_same_v<T, C>;
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(1024) unsigned char shared[];  // L::further needs kRowBytes
  auto* const rows_shared =
      reinterpret_cast<std::int32_t*>(shared + 2 * kAttentionStages * L::kTileBytes);
  auto* const joined =
      reinterpret_cast<float*>(shared + 2 * kAttentionStages * L::kTileBytes + L::kRowsBytes);
  const std::uint32_t tiles = ptx::shared_address(shared);
  const auto synchronise = [] {
    if constexpr (kWarps == 1)
      __syncwarp();
    else
      __syncthreads();
  };
  begin_kernel();

  const BlockRows b(a, kWarps * kWarpRows, int(blockIdx.x));
  if (b.begin >= b.end) return;
  const bool partial = a.splits > 1;

  // This thread's rows: lane / 4 and + 8 of its warp's 16.
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warp_row0 = b.row0 + warp * kWarpRows;
  const AttentionRow rows[2] = {{a, b, warp_row0 + lane / 4}, {a, b, warp_row0 + lane / 4 + 8}};
  const SeenByAll all(a, b, warp_row0, kWarpRows);
  std::uint32_t q[kHead / 16][4];
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const AttentionRow& r = rows[i % 2];
      const int column =
          kWiden ? 16 * k + 4 * (lane % 4) + 2 * (i / 2) : 16 * k + 8 * (i / 2) + 2 * (lane % 4);
      const T* const from =
          static_cast<const T*>(a.q) + r.token * a.q_stride + std::int64_t(r.head) * a.head_dim;
      q[k][i] = r.there && column < a.head_dim
                    ? *reinterpret_cast<const std::uint32_t*>(from + column)
                    : 0;
    }

  float scale_log2[2] = {a.scale_log2, a.scale_log2};
  if constexpr (kWiden && !std::is_same_v<T, __half>) to_half(q, scale_log2);

  // Rows of a tile's positions in the cache: found a tile ahead of the loads that need them.
  constexpr int kFinds = (kPositions + kThreads - 1) / kThreads;
  std::int32_t found[kFinds];
  const auto find_rows = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kFinds; ++i) {
      const int p = tile * kPositions + int(threadIdx.x) + i * kThreads;
      found[i] = b.begin <= p && p < b.end ? std::int32_t(a.cache.row(b.blocks, b.kv_head, p)) : -1;
    }
  };
  const auto keep_rows = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kFinds; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      if (at < kPositions) rows_shared[stage * kPositions + at] = found[i];
    }
  };
  // A thread copies the same chunk of every kStep-th position.
  constexpr int kStep = kThreads / L::kChunks;
  const int chunk = int(threadIdx.x % L::kChunks), first_copied = int(threadIdx.x / L::kChunks);
  const bool in_head = chunk * L::kElements < a.head_dim;
  const auto load_tile = [&](int stage) {
    const std::uint32_t k_to = tiles + stage * 2 * L::kTileBytes, v_to = k_to + L::kTileBytes;
    const C* const k = static_cast<const C*>(a.k) + (in_head ? chunk * L::kElements : 0);
    const C* const v = static_cast<const C*>(a.v) + (in_head ? chunk * L::kElements : 0);
    // Rows that are read before their copies start: reads do not pass a copy.
    constexpr int kAtOnce = kPositions / kStep < 4 ? kPositions / kStep : 4;
#pragma unroll 1
    for (int p0 = first_copied; p0 < kPositions; p0 += kAtOnce * kStep) {
      int cache_rows[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        cache_rows[i] = rows_shared[stage * kPositions + p0 + i * kStep];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const std::uint32_t to = L::at(p0 + i * kStep, chunk);
        const int bytes = in_head && cache_rows[i] >= 0 ? 16 : 0;
        const std::int64_t row = max(cache_rows[i], 0);
        ptx::copy16(k_to + to, k + row * a.cache.k_stride, bytes);
        ptx::copy16(v_to + to, v + row * a.cache.v_stride, bytes);
      }
    }
  };

  float sum[kHead / 8][4];
  Softmax softmax;
  const auto start_part = [&] {
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = 0;
    softmax.start();
  };
  float joined_most[2] = {-INFINITY, -INFINITY}, joined_total[2] = {0, 0};
  float* const joined_row = joined + (warp * kWarpRows + lane / 4) * kHead;
  bool first_part = true;
  start_part();

  const int first_of_tiles = b.begin / kPositions;
  const int end_of_tiles = (b.end + kPositions - 1) / kPositions;
  find_rows(first_of_tiles);
  keep_rows(0);
  find_rows(first_of_tiles + 1);
  keep_rows(1);
  synchronise();
  load_tile(0);
  ptx::copy_commit();
  for (int tile = first_of_tiles; tile < end_of_tiles; ++tile) {
    const int stage = (tile - first_of_tiles) % kAttentionStages;
    const bool more = tile + 1 < end_of_tiles;
    if constexpr (kWarps == 1) {  // two tiles in flight while it waits
      synchronise();
      if (more) load_tile(stage ^ 1);
      ptx::copy_commit();
      ptx::copy_wait<1>();
      synchronise();
    } else {
      ptx::copy_wait<0>();
      synchronise();  // this tile is there, and every warp has done with the other stage
      if (more) load_tile(stage ^ 1);
      ptx::copy_commit();
    }
    find_rows(tile + 2);
    const std::uint32_t k_tile = tiles + stage * 2 * L::kTileBytes, v_tile = k_tile + L::kTileBytes;

    // Scores: [16 rows, 64 positions]. Keys of the next 16 columns load during the products.
    float s[kPositions / 8][4] = {};
    constexpr int kKeyLoads = kPositions * L::kSixteenBytes / 512;
    std::uint32_t keys[2][kKeyLoads][4];
    // Matrices: positions 0-7 and 8-15 of 16, each with both halves of 16 columns; of e4m3 16
    // columns are 16 bytes: four times 8 positions.
    const std::uint32_t keys_at =
        k_tile + (kWiden ? L::at(lane, 0) : L::at(8 * (lane / 16) + lane % 8, lane / 8 % 2));
    const auto load_keys = [&](int k) {
#pragma unroll
      for (int n = 0; n < kKeyLoads; ++n)
        ptx::load_matrices(keys[k % 2][n],
                           L::further(keys_at, (kWiden ? 32 : 16) * n, kWiden ? k : 2 * k));
    };
    load_keys(0);
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
      if (k + 1 < kHead / 16) load_keys(k + 1);
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n) {
        if constexpr (kWiden) {
          const std::uint32_t four = keys[k % 2][n / 4][n % 4];
          ptx::mma<V>(s[n], q[k], widen_e4m3(four & 0xffff), widen_e4m3(four >> 16));
        } else {
          const auto& b = keys[k % 2][n / 2];
          ptx::mma<V>(s[n], q[k], b[2 * (n % 2)], b[2 * (n % 2) + 1]);
        }
      }
    }

    // Softmax weights; a tile that a row does not see changes nothing of it. Missing rows,
    // most of a warp when decoding, may have any weights: no row is of another's product.
    const int p0 = tile * kPositions;
    if (p0 < b.begin || all.hides(p0, p0 + kPositions)) {
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!rows[i / 2].sees(p0 + 8 * n + 2 * (lane % 4) + i % 2)) s[n][i] = -INFINITY;
    }
    float keep[2];
    softmax.step(reinterpret_cast<float(&)[kPositions / 2]>(s), scale_log2, keep);
    if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] *= keep[i / 2];
    }

    // sum += weights * values, 32 columns at a time; the next values load during the products. Of
    // neighbouring products no two have one sum.
    constexpr int kSteps = kHead / 32;
    constexpr int kValueLoads = kWiden ? 1 : 2;
    using Values = std::uint32_t[kValueLoads][4];
    // Matrices: positions 0-7 and 8-15 of 16, of 8 columns and then of the next 8; of e4m3, of 8
    // pairs of columns and then of the next 8.
    const std::uint32_t values_at = v_tile + L::at(lane % 16, lane / 16);
    const auto load_values = [&](Values& values, int k, int step) {
#pragma unroll
      for (int n = 0; n < kValueLoads; ++n)
        ptx::load_matrices_transposed(values[n],
                                      L::further(values_at, 16 * k, 2 * (kValueLoads * step + n)));
    };
    // The fragment of values for column group i of 4, from either half of 16 positions. Of e4m3,
    // groups 0 and 2 are the even columns of 16, 1 and 3 the odd ones: a word has two columns of
    // one position and then of the next.
    const auto fragment = [&](const Values& values, int i, int half) {
      if constexpr (kWiden) {
        const std::uint32_t word = values[0][2 * (i / 2) + half];
        return widen_e4m3(__byte_perm(word, 0, i % 2 ? 0x4431 : 0x4420) & 0xffff);
      } else {
        return values[i / 2][2 * (i % 2) + half];
      }
    };
    // kOdd: NaN and infinity count as 0. What else they need has its own loop: in this one it would
    // take the registers that the products of every other tile need.
    const auto add_products = [&]<bool kOdd>() {
      Values values[2];
      load_values(values[0], 0, 0);
#pragma unroll
      for (int k = 0; k < kPositions / 16; ++k) {
        std::uint32_t weights[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const pair = &s[2 * k + i / 2][2 * (i % 2)];
          weights[i] = rounded_pair<V>(pair[0], pair[1]);
        }
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
          const int at = k * kSteps + n, next = at + 1;
          if (next < kSteps * kPositions / 16)
            load_values(values[next % 2], next / kSteps, next % kSteps);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            std::uint32_t b[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              b[half] = fragment(values[at % 2], i, half);
              if constexpr (kOdd) b[half] &= ~Bits<V>::not_finite(b[half]);
            }
            ptx::mma<V>(sum[4 * n + i], weights, b[0], b[1]);
          }
        }
      }
    };
    // NaN for the rows that do see such values: products of ones count them.
    const auto add_odd = [&] {
      constexpr std::uint32_t kOnes = Bits<V>::kOne * 0x10001u;
#pragma unroll 1
      for (int k = 0; k < kPositions / 16; ++k) {
        std::uint32_t sees[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int p = p0 + 16 * k + 8 * (i / 2) + 2 * (lane % 4);
          const auto one = [&](int q) { return rows[i % 2].sees(q) ? Bits<V>::kOne : 0; };
          sees[i] = one(p) | one(p + 1) << 16;
        }
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
          Values values;
          load_values(values, k, n);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float seen[4] = {};
            ptx::mma<V>(seen, sees, Bits<V>::not_finite(fragment(values, i, 0)) & kOnes,
                        Bits<V>::not_finite(fragment(values, i, 1)) & kOnes);
#pragma unroll
            for (int j = 0; j < 4; ++j)
              if (seen[j] > 0) sum[4 * n + i][j] = NAN;
          }
        }
      }
    };
    // A weight of 0 does not keep NaN and infinity out of a sum. They are looked for if some row of
    // this warp does not see a position whose values are loaded.
    bool odd = false;
    if (all.hides(max(b.begin, p0), min(b.end, p0 + kPositions))) {
      const auto* const words =
          reinterpret_cast<const uint4*>(shared + stage * 2 * L::kTileBytes + L::kTileBytes);
      for (int i = lane; i < L::kTileBytes / 16; i += 32) {
        const uint4 w = words[i];
        odd |= (Bits<C>::not_finite(w.x) | Bits<C>::not_finite(w.y) | Bits<C>::not_finite(w.z) |
                Bits<C>::not_finite(w.w)) != 0;
      }
      odd = __any_sync(~0u, odd);
    }
    if (odd) {
      add_products.template operator()<true>();
      add_odd();
    } else {
      add_products.template operator()<false>();
    }

    // A part ends: it joins those before it.
    const bool part_ends = !more || (tile + 1) % (kSplitTokens / kPositions) == 0;
    if (part_ends) {
      softmax.add_up_totals();
      if (!partial) {
        const Join join[2] = {{joined_most[0], softmax.most[0]}, {joined_most[1], softmax.most[1]}};
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float* const at = joined_row + (i / 2) * 8 * kHead + 8 * n + 2 * (lane % 4) + i % 2;
            const float old = first_part ? 0 : *at;
            const float both = join[i / 2](old, sum[n][i]);
            sum[n][i] = both;
            if (more) *at = both;
          }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          joined_total[i] = join[i](joined_total[i], softmax.total[i]);
          joined_most[i] = join[i].most;
        }
        first_part = false;
        if (more) start_part();
      }
    }
    keep_rows(stage);  // read after the next synchronisation
  }

  // Sums come in pairs of neighbouring columns, of e4m3 from two fragments: the first column of
  // pair n, and the pair of row i.
  const auto column_of = [&](int n) {
    return kWiden ? 16 * (n / 2) + 4 * (lane % 4) + 2 * (n % 2) : 8 * n + 2 * (lane % 4);
  };
  const auto pair_of = [&](int n, int i) {
    return kWiden ? make_float2(sum[n / 2 * 2][2 * i + n % 2], sum[n / 2 * 2 + 1][2 * i + n % 2])
                  : make_float2(sum[n][2 * i], sum[n][2 * i + 1]);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!rows[i].there) continue;
    if (partial) {
      const std::int64_t part = (rows[i].token * a.heads + rows[i].head) * a.splits + b.split;
      if (lane % 4 == 0) {
        a.totals[2 * part] = softmax.most[i];
        a.totals[2 * part + 1] = softmax.total[i];
      }
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n)
        if (column_of(n) < a.head_dim)
          *reinterpret_cast<float2*>(a.sums + part * a.head_dim + column_of(n)) = pair_of(n, i);
    } else {
      T* const y = static_cast<T*>(a.y) + rows[i].token * a.y_stride +
                   std::int64_t(rows[i].head) * a.head_dim;
      const float factor = __frcp_rn(joined_total[i]);
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        if (column_of(n) >= a.head_dim) continue;
        const float2 pair = pair_of(n, i);
        y[column_of(n)] = rounded_to<T>(__fmul_rn(pair.x, factor));
        y[column_of(n) + 1] = rounded_to<T>(__fmul_rn(pair.y, factor));
      }
    }
  }
}

template <class T, class C, int kHead, int kWarps>
void start_attention(cudaStream_t stream, const AttentionArgs& args) {
  launch(stream,
         {.blocks = std::int64_t(args.row_tiles) * args.cache.kv_heads * args.splits,
          .threads = kWarps * 32,
          .shared_bytes = AttentionLayout<C, kHead, kWarps>::kSharedBytes},
         attention_mma_kernel<T, C, kHead, kWarps>, args);
}

// The kernel for the smallest head that holds head_dim, then the join of its parts.
template <class T, class C>
void attention_mma_of(cudaStream_t stream, const AttentionArgs& args, int warps) {
  const auto with = [&]<int kHead>() {
    warps == 1 ? start_attention<T, C, kHead, 1>(stream, args)
               : start_attention<T, C, kHead, 4>(stream, args);
  };
  if (args.head_dim <= 64)
    with.template operator()<64>();
  else if (args.head_dim <= 128)
    with.template operator()<128>();
  else
    with.template operator()<256>();
  if (args.splits > 1) join_parts<T>(stream, args);
}

}  // namespace ostro::cuda
