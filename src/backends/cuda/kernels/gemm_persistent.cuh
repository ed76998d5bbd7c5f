// The GEMM of experts in steps of up to 256 tokens, of bf16 and f16 up to 384: a kernel that
// gemm_persistent_*.cu instantiate. Its tiles and copies are in gemm_persistent_copies.cuh.
//
// Roles:    weights are the rows (M) of the product, tokens its columns (N).
// Numbers:  bit by bit those of gemm_e4m3.cuh and gemm_wgmma.cuh. Of 16-bit elements the tensor
//           core sums all of K. Of e4m3 it sums 128 columns, and these sums are added in f32, in
//           order, times the token's scale of them; with SwiGLU a token has one scale for all
//           columns, which multiplies the result.
// Grid:     a block for each multiprocessor, which walks the tiles of 256 weight rows (with SwiGLU:
//           128 of gate and the up rows of the same outputs; of 64 where wider ones are too few) x
//           kTokens tokens of one expert.
// Pipeline: a thread copies weights (TMA), two warps copy tokens (cp.async, which gathers rows), or
//           of 96 tokens of e4m3 a thread their boxes (TMA; their rows were gathered before), all
//           of the next tile too while the results of this one are stored: memory never waits for
//           a tile to end. Two warpgroups multiply, each 64 rows of each half. Down's first weights
//           come while gate and up end, whose kernel has the list of tiles from its predecessor.
// Traffic:  weights once for each tile of tokens, the first that L2 gives up; tokens once for each
//           tile of weight rows, from L2.
// Bound by: memory.
// Floor on an H100: the bytes of each expert in use / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes; of the floor): an expert
//           layer of e4m3 132 us at 1 token (85 %), 415 at 8 (94 %), 479 at 32 (93 %), 485 at 64
//           (92 %), 494 at 128 (90 %), 545 at 256 (82 %); of bf16 244 us at 1 (92 %), 814 at 8
//           (96 %), 926 at 32 (97 %), 930 at 64 (96 %), 960 at 128 (93 %), 1.01 ms at 256 (88 %).
#pragma once

#include "backends/cuda/kernels/e4m3.cuh"
#include "backends/cuda/kernels/gemm_persistent_copies.cuh"
#include "backends/cuda/kernels/tensor_map.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/registers.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

// A thread of the warpgroups that multiply.
template <class Tile>
class PersistentSums {
 public:
  __device__ PersistentSums(const GemmArgs& a, const TmaWeights& weights,
                            const PersistentMemory<Tile>& memory, int k_tiles)
      : a_(a),
        weights_(weights),
        memory_(memory),
        lane_(int(threadIdx.x) % 32),
        warp_(int(threadIdx.x) / 32),
        // The same in all lanes, which the compiler is to know: descriptors are warp-wide.
        group_(__shfl_sync(~0u, int(threadIdx.x) / 128, 0)),
        k_tiles_(k_tiles) {}

  __device__ void multiply() {
    PersistentWalk<Tile> walk(a_);
    while (walk.take(a_)) {
      const int row_tile = walk.row_tile;
      const TokenTile tile = walk.tile;
      Sums sum;
      if constexpr (Tile::kE4m3) {
        float weight_scale[kHalves][2];
        load_weight_scales(row_tile * Tile::kOutputs, tile.expert, weight_scale);
        const float token_scale = load_token_scale(tile);
        add_e4m3_stages(k_tiles_, tile.count, sum);
        scale_sums(weight_scale, token_scale, sum);
      } else {
        set_zero<0, kN>(sum);
        for (int i = 0; i < k_tiles_; ++i) add_stage(sum);
      }
      if constexpr (Tile::kSwiglu)
        store_hidden(row_tile, tile, sum);
      else
        store(row_tile * Tile::kOutputs, tile, sum);
    }
  }

 private:
  static constexpr int kN = Tile::kTokens, kHalves = Tile::kHalves;
  static constexpr int kSteps = Tile::kRowBytes / 32;
  // Tokens whose results a warp stores at a time.
  static constexpr int kWarpTokens = Tile::kSumTokens / 8;
  static constexpr int kBatch = kWarpTokens % 3 == 0 ? 3 : kWarpTokens < 4 ? kWarpTokens : 4;
  using Product = ptx::Wgmma<typename Tile::Element, kN>;
  using Sums = float[kHalves][kN / 2];

  // Of a fragment: its rows are row() and row() + 8 of a half, its columns 8 j + column() and + 1.
  __device__ int row() const { return group_ * 64 + warp_ % 4 * 16 + lane_ / 4; }
  __device__ int column() const { return lane_ % 4 * 2; }

  __device__ std::uint64_t rows(int stage, int half) const {
    return ptx::swizzled_tile(memory_.weights(stage) + half * Tile::kHalfBytes +
                              group_ * 64 * Tile::kRowBytes);
  }
  __device__ void release(int stage) {
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(memory_.empty(stage));
    ring_.advance();
  }

  // The sums of tokens kFirst to kLast - 1.
  template <int kFirst, int kLast>
  static __device__ void set_zero(Sums& sum) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int e = kFirst / 2; e < kLast / 2; ++e) sum[h][e] = 0;
  }

  // sum += the products of the next stage.
  __device__ void add_stage(Sums& sum) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.full(stage), ring_.parity);
    const std::uint64_t tokens = ptx::swizzled_tile(memory_.tokens(stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        Product::run(sum[h], rows(stage, h) + 2 * step, tokens + 2 * step);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    release(stage);
  }

  __device__ void load_weight_scales(int n0, int expert, float (&scale)[kHalves][2]) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool is_up = Tile::kSwiglu && h == 1;
        const int output = n0 + row() + 8 * e + (is_up ? 0 : h * Tile::kHalfRows);
        scale[h][e] =
            output < a_.n ? (is_up ? weights_.up : weights_.weight)[expert].scale[output] : 0;
      }
  }

  // The products of a stage's columns with a half of the weight rows, of the first kWide tokens.
  template <int kWide>
  __device__ void start_half(int stage, int half, float (&part)[kWide / 2]) const {
    using Product = ptx::Wgmma<typename Tile::Element, kWide>;
    const std::uint64_t weights = rows(stage, half);
    const std::uint64_t tokens = ptx::swizzled_tile(memory_.tokens(stage));
    ptx::wgmma_fence();
    Product::run_first(part, weights, tokens);
#pragma unroll
    for (int step = 1; step < kSteps; ++step)
      Product::run(part, weights + 2 * step, tokens + 2 * step);
    ptx::wgmma_commit();
  }

  // They are there.
  template <int kWide>
  __device__ void add_half(int stage, float (&part)[kWide / 2], float (&sum)[kN / 2]) const {
    ptx::hold_registers(part);
#pragma unroll
    for (int j = 0; j < kWide / 8; ++j) {
      Pack<float, 2> scale{{1, 1}};
      if constexpr (Tile::kGroupScales)
        scale = load_pack<2>(memory_.scales(stage) + 8 * j + column());
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sum[4 * j + e] = fmaf(part[4 * j + e], scale.v[e % 2], sum[4 * j + e]);
    }
  }

  // sum = the products of all stages of e4m3: one half is added while the other is under way.
  template <int kWide>
  __device__ void add_e4m3_stages_of(int k_tiles, Sums& sum) {
    set_zero<0, kWide>(sum);
    float part[kHalves][kWide / 2] = {};  // room for what the tensor core sums
    for (int i = 0; i < k_tiles; ++i) {
      const int stage = ring_.stage;
      ptx::barrier_wait(memory_.full(stage), ring_.parity);
      start_half<kWide>(stage, 0, part[0]);
      if constexpr (kHalves == 2) {
        start_half<kWide>(stage, 1, part[1]);
        ptx::wgmma_wait<1>();
        add_half<kWide>(stage, part[0], sum[0]);
      }
      ptx::wgmma_wait<0>();
      add_half<kWide>(stage, part[kHalves - 1], sum[kHalves - 1]);
      release(stage);
    }
    set_zero<kWide, kN>(sum);  // not before: they would hold registers all the time
  }

  // By no more tokens than the tile has, in steps of 16, where tiles are large.
  __device__ void add_e4m3_stages(int k_tiles, int count, Sums& sum) {
    if constexpr (Tile::kBoxes) {
      static_assert(kN == 96);
      if (count <= 32) return add_e4m3_stages_of<32>(k_tiles, sum);
      if (count <= 48) return add_e4m3_stages_of<48>(k_tiles, sum);
      if (count <= 64) return add_e4m3_stages_of<64>(k_tiles, sum);
      if (count <= 80) return add_e4m3_stages_of<80>(k_tiles, sum);
    }
    add_e4m3_stages_of<kN>(k_tiles, sum);
  }

  // Of the token of this thread's number, if tokens have one for all columns: from in front of the
  // products, for behind them the warpgroups would wait for it.
  __device__ float load_token_scale(const TokenTile& tile) const {
    if constexpr (Tile::kGroupScales) return 1;
    const int slot = tile.first + int(threadIdx.x);
    return int(threadIdx.x) < tile.count ? a_.x_scale[a_.rows ? a_.rows[slot] : slot] : 0;
  }

  __device__ void scale_sums(const float (&weight_scale)[kHalves][2], float token_scale,
                             Sums& sum) const {
    if constexpr (!Tile::kGroupScales) {
      // Those of the tile before were read in front of store_hidden()'s barriers.
      if (int(threadIdx.x) < kN) memory_.token_scales()[threadIdx.x] = token_scale;
      ptx::named_barrier_sync(1, Tile::kMathThreads);
    }
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      Pack<float, 2> x_scale{{1, 1}};
      if constexpr (!Tile::kGroupScales)
        x_scale = load_pack<2>(memory_.token_scales() + 8 * j + column());
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum[h][4 * j + e] = sum[h][4 * j + e] * x_scale.v[e % 2] * weight_scale[h][e / 2];
    }
  }

  __device__ void store(int n0, const TokenTile& tile, const Sums& sum) const {
#pragma unroll
    for (int e = 0; e < kHalves * kN / 2; ++e) {
      const int c = e % 2, h = e / 2 % kHalves, r = e / 2 / kHalves % 2, j = e / 4 / kHalves;
      const int token = 8 * j + column() + c, output = n0 + h * Tile::kHalfRows + row() + 8 * r;
      if (token < tile.count && output < a_.n)
        store_output(a_, tile.first + token, output, Pack<float, 1>{{sum[h][4 * j + 2 * r + c]}});
    }
  }

  // Through shared memory, from which a warp takes a token's outputs, four a lane.
  __device__ void store_hidden(int row_tile, const TokenTile& tile, const Sums& sum) const {
    const int column0 = row_tile * Tile::kOutputs + lane_ * 4;
#pragma unroll
    for (int first = 0; first < kN; first += Tile::kSumTokens) {
      if (first >= tile.count) break;
      ptx::named_barrier_sync(1, Tile::kMathThreads);  // nobody reads those before
#pragma unroll
      for (int i = 0; i < Tile::kSumTokens / 2; ++i) {
        const int e = first / 2 + i, token = e / 4 * 8 + column() + e % 2;
        if (token < tile.count)
          memory_.sums(token - first)[row() + e % 4 / 2 * 8] = swiglu(sum[0][e], sum[1][e]);
      }
      ptx::named_barrier_sync(1, Tile::kMathThreads);
      const int count = min(tile.count - first, Tile::kSumTokens);
      // Several tokens at a time, whose loads and maxima need not wait for one another.
      for (int token = warp_; token < count; token += kBatch * Tile::kMathWarps) {
        Pack<float, 4> value[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
          value[b] =
              load_pack<4>(memory_.sums(min(token + b * Tile::kMathWarps, count - 1)) + lane_ * 4);
        const int there = (count - token + Tile::kMathWarps - 1) / Tile::kMathWarps;
        const std::int64_t slot = tile.first + first + token;
        if constexpr (Tile::kE4m3) {
          store_e4m3(slot, there, row_tile, column0, value);
        } else {
#pragma unroll
          for (int b = 0; b < kBatch; ++b)
            if (b < there) store_outputs(a_, slot + b * Tile::kMathWarps, column0, value[b]);
        }
      }
    }
  }

  // With one scale for a token's outputs of the tile; of the tokens from `slot` on, every
  // kMathWarps-th, the first `there`.
  __device__ void store_e4m3(std::int64_t slot, int there, int row_tile, int column,
                             Pack<float, 4> (&value)[kBatch]) const {
    std::uint32_t most[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (column + j >= a_.n) value[b].v[j] = 0;
      // The bits of numbers that are not negative have their order.
      most[b] = __reduce_max_sync(~0u, __float_as_uint(amax(value[b], quant::kE4m3LeastAmax)));
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= there) break;
      const float largest = __uint_as_float(most[b]);
      const std::int64_t at = slot + b * Tile::kMathWarps;
      // Rows of y are padded to 16 bytes.
      if (column < a_.n)
        *reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(a_.y) + at * a_.y_stride +
                                          column) = to_e4m3(value[b], e4m3_factor(largest));
      if (lane_ == 0) a_.y_scale[row_tile * a_.y_scale_stride + at] = e4m3_scale(largest);
    }
  }

  const GemmArgs& a_;
  const TmaWeights& weights_;
  const PersistentMemory<Tile>& memory_;
  const int lane_, warp_, group_, k_tiles_;
  StageRing<Tile::kStages> ring_;
};

// By Sums in the warpgroups that multiply and by Copies in the warps that copy tokens. listed: the
// tiles were listed by a kernel before the predecessor, which has ended. x: the tokens, if they
// come in boxes.
template <class Tile, class Sums, class Copies>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_persistent_kernel(const GemmArgs a, const bool listed,
                           const __grid_constant__ TmaWeights weights,
                           const __grid_constant__ CUtensorMap x) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw), shared = (raw + 1023) & ~1023u;
  const PersistentMemory<Tile> memory{{shared}, shared_raw + (shared - raw)};
  const int k_tiles = (a.k + Tile::kK - 1) / Tile::kK;
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);
  // Of weights, once for their bytes, of boxes likewise, and of each warp that copies tokens.
  constexpr int kWriters = 1 + Tile::kBoxes + Tile::kTokenWarps;
  if (threadIdx.x == 0) memory.init_barriers(kWriters, Tile::kReaders);
  __syncthreads();
  if (warp < Tile::kMathWarps) {
    if constexpr (Tile::kSharesRegisters) ptx::more_registers<Tile::kMathRegisters>();
    begin_kernel();
    Sums(a, weights, memory, k_tiles).multiply();
    return;
  }
  if constexpr (Tile::kSharesRegisters) ptx::fewer_registers<Tile::kCopyRegisters>();
  const int copy_warp = warp - Tile::kMathWarps;
  if (copy_warp < Tile::kTokenWarps) {
    begin_kernel();
    copy_tokens<Tile, Copies>(a, memory, k_tiles);
  } else if (copy_warp == Tile::kTokenWarps && threadIdx.x % 32 == 0) {
    // Weights do not change: the first of them come while the predecessor ends.
    if (!listed) begin_kernel();
    copy_weights(a, weights, memory, k_tiles);
  } else if constexpr (Tile::kBoxes) {
    if (copy_warp == 3 && threadIdx.x % 32 == 0) {
      begin_kernel();
      copy_boxes(a, x, memory, k_tiles);
    }
  }
}

template <class Tile, class Sums = PersistentSums<Tile>, class Copies = TokenCopies<Tile>>
void start_gemm_persistent(cudaStream_t stream, const Gemm& g, const HostWeights& host,
                           int processors) {
  OSTRO_CHECK(g.token_tile == Tile::kTokens, "tiles of ", g.token_tile, " tokens, not ",
              Tile::kTokens);
  const GemmArgs& a = g.args;
  OSTRO_CHECK(!Tile::kBoxes || !a.rows, "tiles of ", g.token_tile, " tokens lie in a row");
  constexpr std::int64_t kSize = sizeof(typename Tile::Element);
  CUtensorMap x{};
  if constexpr (Tile::kBoxes)
    x = swizzled_map(a.x, a.slots, a.k * kSize, a.x_stride * kSize, Tile::kBoxTokens);
  const std::int64_t row_tiles = ceil_div<std::int64_t>(a.n, Tile::kOutputs);
  launch(stream,
         {.blocks = std::min<std::int64_t>(processors, row_tiles * a.max_tiles),
          .threads = Tile::kThreads,
          .shared_bytes = Tile::kSharedBytes},
         gemm_persistent_kernel<Tile, Sums, Copies>, a, g.listed, tma_weights<Tile>(a, host), x);
}

// Few rows are in use: tiles of 256 weight rows, without an activation, leave processors idle.
inline bool few_wide_tiles(const Gemm& g, const HostWeights& host, int processors) {
  const auto experts = std::int64_t(host.weight.size());
  return 4 * ceil_div<std::int64_t>(g.args.n, 256) * std::min(g.args.slots, experts) <
         3 * processors;
}

// bf16 and f16.
template <class T>
void gemm_persistent_16(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  switch (g.token_tile) {
    case 8:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 8, 6, true>>(stream, g, w, processors)
             : few_wide_tiles(g, w, processors)
                 ? start_gemm_persistent<PersistentTile<T, 8, 24, false, 1, 1>>(stream, g, w,
                                                                                processors)
                 : start_gemm_persistent<PersistentTile<T, 8, 6, false>>(stream, g, w, processors);
    case 16:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 16, 6, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 16, 6, false>>(stream, g, w, processors);
    case 32:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 32, 5, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 32, 6, false>>(stream, g, w, processors);
    case 64:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 64, 4, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 64, 5, false>>(stream, g, w, processors);
    case 128:
      return g.swiglu
                 ? start_gemm_persistent<PersistentTile<T, 128, 4, true>>(stream, g, w, processors)
                 : start_gemm_persistent<PersistentTile<T, 128, 4, false>>(stream, g, w,
                                                                           processors);
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

}  // namespace ostro::cuda
