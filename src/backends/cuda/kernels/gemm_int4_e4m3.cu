// The GEMM of int4 weights and e4m3 tokens, for prompts.
//
// Roles:    as in gemm_integer.cuh: weights are the rows (M) of the product, turned into e4m3 in
//           registers, exactly; tokens its columns (N), in int4's order (kernels/quantise.h).
// Numbers:  the tensor core sums 128 columns in four steps of 32; these sums are added in f32 in
//           order, times the scales of the groups. The result is multiplied by the token's scale.
// Grid:     as many blocks as multiprocessors, in clusters of two that walk one list of tiles of
//           2 x 192 weight rows x 128 tokens. With SwiGLU the 192 rows are 96 gate rows and the up
//           rows of the same outputs.
// Pipeline: one thread copies boxes (TMA) into stages of 128 columns, half of the tokens for both
//           blocks of the cluster. Three warpgroups multiply 64 rows each: while one widens or
//           adds, the tensor core works for the others.
// Traffic:  20 KB from L2 for each 6.3 MFLOP.
// Bound by: what stands between two products of a warp, a chain of short latencies: about 190
//           instructions, 64 of them to widen 64 weights and 64 to add 64 sums, for 256 cycles of
//           the tensor core, which is busy for half of the time.
// Floor on an H100: 2 tokens n k / 1385e12 s.
// Measured (H200, cuda_kernels_bench, Mixtral 8x7B's shapes; of that floor): qkv 122 us at 2048
//           tokens (61 %), 490 at 8192 (61 %); all of an expert layer 657 us at 512 (40 %), 1.81 ms
//           at 2048 (58 %), 6.60 at 8192 (63 %).
#include "backends/cuda/kernels/gemm_integer_tma.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"

namespace ostro::cuda {
namespace {

template <bool kSwiglu_>
struct Int4E4m3Tile {
  static constexpr bool kSwiglu = kSwiglu_;
  static constexpr int kCluster = 2, kGroups = 3, kGroupRows = 64;
  static constexpr int kTokens = kIntegerTmaTile, kShare = kTokens / kCluster;
  static constexpr int kRows = kGroups * kGroupRows, kBoxes = kSwiglu ? 2 : 1;
  static constexpr int kOutputs = kRows / kBoxes;
  static constexpr int kColumns = quant::kInt4Group;  // of a stage
  static constexpr int kRowBytes = quant::kInt4GroupBytes, kBoxBytes = kOutputs * kRowBytes;
  static constexpr int kWeightBytes = kRows * kRowBytes, kTokenBytes = kTokens * kColumns;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  static_assert(kColumns == 128 && kWeightBytes % 1024 == 0, "swizzled tiles");
  static constexpr int kStages = 7;
  // Behind the stages: barriers; the tokens' scales, for each warpgroup.
  static constexpr int kBarriers = kStages * kStageBytes, kScales = kBarriers + kStages * 16;
  static constexpr int kSharedBytes = kScales + kGroups * kTokens * int(sizeof(float)) + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kMathRegisters = 160, kCopyRegisters = 24;
  // A block owns what its threads have at the launch: asked for more, setmaxnreg waits for ever.
  static_assert(128 * (kGroups * kMathRegisters + kCopyRegisters) <=
                kThreads * (65536 / kThreads / 8 * 8));
  static constexpr int kRaster = BlockTile::kRaster / kCluster;
};

// An int4 as e4m3 is the integer / kInt4OfE4m3: magnitudes up to 8 are then codes of e4m3 as they
// are. `low` gets the first 16 columns of a word, `high` the others.
constexpr float kInt4OfE4m3 = 512;
__device__ inline void int4_to_e4m3(std::uint32_t word, std::uint32_t& low, std::uint32_t& high) {
  constexpr std::uint32_t kNibbles = 0x0f0f0f0f, kZeros = 0x08080808, kSigns = 0x80808080;
  low = __vabsdiffu4(word & kNibbles, kZeros) | (~(word << 4) & kSigns);
  high = __vabsdiffu4(word >> 4 & kNibbles, kZeros) | (~word & kSigns);
}

// Of a group of columns a lane's 16 bytes of two weight rows: its row of a product and that 8
// below.
struct Int4Rows {
  std::uint32_t words[2][4];

  // From `row` in shared memory, and `below` bytes further.
  __device__ void load(std::uint32_t row, int below) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint4 w = ptx::load16(row + e * below);
      words[e][0] = w.x, words[e][1] = w.y, words[e][2] = w.z, words[e][3] = w.w;
    }
  }
  // Starts part = the products of 128 columns of 64 weight rows with 128 tokens; `w` is theirs
  // until they end.
  __device__ void multiply(float (&part)[64], std::uint32_t tokens,
                           std::uint32_t (&w)[4][4]) const {
    const std::uint64_t x = ptx::swizzled_tile(tokens);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int e = 0; e < 2; ++e) int4_to_e4m3(words[e][q], w[q][e], w[q][2 + e]);
      ptx::hold_registers(w[q]);
      ptx::wgmma_fence();
      ptx::WgmmaRegisters<__nv_fp8_e4m3, 128>::run(part, w[q], x + 2 * q, q > 0);
    }
    ptx::wgmma_commit();
  }
};

// One thread: all that this block needs, and half of the tokens for the other too.
template <class Tile>
__device__ void copy_tiles(const GemmArgs& a, const CUtensorMap& x, const TmaWeights& weights,
                           const Stages<Tile>& stages, int groups) {
  constexpr std::uint16_t kBoth = 3;
  const int rank = int(blockIdx.x) % Tile::kCluster;
  IntegerTmaWalk<Tile> walk(a);
  while (walk.take(a))
    for (int g = 0; g < groups; ++g) {
      const std::uint32_t to = stages.weights(walk.stage), barrier = stages.full(walk.stage);
      ptx::barrier_wait(stages.empty(walk.stage), walk.parity ^ 1);
      // What comes from the other block too; it may have come already.
      ptx::barrier_arrive_expect(barrier, Tile::kStageBytes);
      for (int box = 0; box < Tile::kBoxes; ++box)
        ptx::copy_box(to + box * Tile::kBoxBytes,
                      (box == 0 ? weights.weight : weights.up)[walk.tile.expert].rows,
                      g * Tile::kRowBytes, walk.row_tile * Tile::kOutputs, barrier);
      const int share = rank * Tile::kShare;
      ptx::copy_box_to(kBoth, stages.tokens(walk.stage) + share * Tile::kColumns, x,
                       g * Tile::kColumns, walk.tile.first + share, barrier);
      walk.advance();
    }
}

// A multiplying warpgroup: its weight rows of each tile. `token_scales`: room for those of the
// tokens of a tile, for each warpgroup.
template <class Tile>
__device__ void multiply_tiles(const GemmArgs& a, const TmaWeights& weights,
                               const Stages<Tile>& stages, float* token_scales, int groups) {
  // The same in all lanes, which the compiler is to know.
  const int group = __shfl_sync(~0u, int(threadIdx.x) / 128, 0);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int thread = int(threadIdx.x) % 128;
  // The rows of this lane: neighbours in turns of eight, or gate and up rows of the same outputs.
  constexpr int kWarpOutputs = Tile::kSwiglu ? 8 : 16;
  constexpr int kBelow = Tile::kSwiglu ? Tile::kOutputs : 8;
  const int row = warp * kWarpOutputs + lane / 4;
  token_scales += group * Tile::kTokens;

  IntegerTmaWalk<Tile> walk(a);
  while (walk.take(a)) {
    const TokenTile& tile = walk.tile;
    const int output = walk.row_tile * Tile::kOutputs + row;
    const TmaWeights::Matrix& first = weights.weight[tile.expert];
    const TmaWeights::Matrix& second = Tile::kSwiglu ? weights.up[tile.expert] : first;
    // Of rows that are not there another's scales are loaded, and the results not stored.
    const auto scales_of = [&](const TmaWeights::Matrix& m, int i) {
      return reinterpret_cast<const __nv_bfloat16*>(m.scale) + min(a.n - 1, i) * a.w_scale_stride;
    };
    const __nv_bfloat16* scale_from[2] = {scales_of(first, output),
                                          scales_of(second, output + (Tile::kSwiglu ? 0 : 8))};
    ptx::named_barrier_sync(1 + group, 128);  // nobody reads those of the tile before
    token_scales[thread] = thread < tile.count ? kInt4OfE4m3 * a.x_scale[tile.first + thread] : 0;
    float sum[Tile::kTokens / 2] = {};
    for (int g = 0; g < groups; ++g) {
      const __nv_bfloat16 scale[2] = {__ldg(scale_from[0]++), __ldg(scale_from[1]++)};
      const int stage = walk.stage;
      float part[Tile::kTokens / 2];
      std::uint32_t w[4][4];
      ptx::barrier_wait(stages.full(walk.stage), walk.parity);
      Int4Rows rows;
      rows.load(stages.weights(stage) + row * Tile::kRowBytes + lane % 4 * 16,
                kBelow * Tile::kRowBytes);
      rows.multiply(part, stages.tokens(stage), w);
      walk.advance();
      ptx::wgmma_wait<0>();
      ptx::hold_registers(w);
      ptx::hold_registers(part);
      __syncwarp();
      if (lane < Tile::kCluster) ptx::barrier_arrive(stages.empty(stage), lane);
#pragma unroll
      for (int i = 0; i < Tile::kTokens / 2; ++i)
        sum[i] = fmaf(part[i], widen(scale[i % 4 / 2]), sum[i]);
    }

    ptx::named_barrier_sync(1 + group, 128);
#pragma unroll
    for (int j = 0; j < Tile::kTokens / 8; ++j) {
      const auto both = load_pack<2>(token_scales + 8 * j + lane % 4 * 2);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[4 * j + e] *= both.v[e % 2];
    }
    visit_y(a, [&]<class Y>(Y* y) {
      Y* to = y + (tile.first + lane % 4 * 2) * a.y_stride + output;
#pragma unroll
      for (int j = 0; j < Tile::kTokens / 8; ++j, to += 8 * a.y_stride)
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          if (8 * j + lane % 4 * 2 + b >= tile.count) continue;
          const float* const two = sum + 4 * j + b;
          if constexpr (Tile::kSwiglu) {
            if (output < a.n) to[b * a.y_stride] = rounded_to<Y>(swiglu(two[0], two[2]));
          } else {
            if (output < a.n) to[b * a.y_stride] = rounded_to<Y>(two[0]);
            if (output + 8 < a.n) to[b * a.y_stride + 8] = rounded_to<Y>(two[2]);
          }
        }
    });
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_int4_e4m3_kernel(const GemmArgs a, const __grid_constant__ CUtensorMap x,
                          const __grid_constant__ TmaWeights weights) {
  extern __shared__ unsigned char shared_raw[];
  const std::uint32_t raw = ptx::shared_address(shared_raw);
  const Stages<Tile> stages{(raw + 1023) & ~1023u};
  const int groups = a.k / Tile::kColumns;

  // Each multiplying warp of each block of the cluster reads a stage.
  if (threadIdx.x == 0) stages.init_barriers(1, 4 * Tile::kGroups * Tile::kCluster);
  ptx::cluster_sync();
  begin_kernel();

  if (int(threadIdx.x) >= 128 * Tile::kGroups) {
    ptx::fewer_registers<Tile::kCopyRegisters>();
    if (int(threadIdx.x) == 128 * Tile::kGroups) copy_tiles<Tile>(a, x, weights, stages, groups);
    __syncwarp();
  } else {
    ptx::more_registers<Tile::kMathRegisters>();
    float* const token_scales =
        reinterpret_cast<float*>(shared_raw + (stages.shared - raw) + Tile::kScales);
    multiply_tiles<Tile>(a, weights, stages, token_scales, groups);
  }
  // No block ends while the other may still arrive at its barriers.
  ptx::cluster_sync();
}

template <class Tile>
void start(cudaStream_t stream, const Gemm& g, const HostWeights& host, int processors) {
  const GemmArgs& a = g.args;
  start_walk<Tile>(
      stream, g, host, processors, gemm_int4_e4m3_kernel<Tile>, 1, [&](const WeightRef& w) {
        return packed_map(w.data, a.n, a.k / 2, w.stride, Tile::kRowBytes, Tile::kOutputs);
      });
}

}  // namespace

void gemm_int4_e4m3(cudaStream_t stream, const Gemm& g, const HostWeights& w, int processors) {
  g.swiglu ? start<Int4E4m3Tile<true>>(stream, g, w, processors)
           : start<Int4E4m3Tile<false>>(stream, g, w, processors);
}

}  // namespace ostro::cuda
