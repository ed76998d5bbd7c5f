// The sums of the GEMM of prompts (gemm_tma.cuh): 64 tokens times all weight rows of a tile, for
// one warpgroup, from the stages that come.
#pragma once

#include "backends/cuda/kernels/gemm_tma_store.cuh"
#include "backends/cuda/kernels/gemm_tma_tile.cuh"
#include "backends/cuda/ptx/mma.cuh"
#include "backends/cuda/ptx/named_barrier.cuh"
#include "backends/cuda/ptx/wgmma.cuh"

namespace ostro::cuda {

// A warp of a multiplying warpgroup.
template <class Tile>
struct MathWarp {
  Stages<Tile> stages;
  StageRing<Tile::kStages> ring;
  int group, warp, lane;  // warp: of the group
  float* scales;          // this group's, of the tile's weight rows

  // What this warp has read may be overwritten, here and by copies to the other block.
  __device__ void release(int stage) const {
    __syncwarp();
    if (lane < Tile::kCluster) ptx::barrier_arrive(stages.empty(stage), lane);
  }
  __device__ void wait() const { ptx::barrier_wait(stages.full(ring.stage), ring.parity); }

  // A tile without tokens for this warpgroup.
  __device__ void skip(int k_tiles) {
    for (int i = 0; i < k_tiles; ++i) {
      wait();
      release(ring.stage);
      ring.advance();
    }
  }
};

// Of bf16 and f16 the tensor core sums all columns. The products of one stage run while those of
// the next are started.
template <class Tile>
__device__ inline void sum_stages_16(MathWarp<Tile>& m, int k_tiles, float (&sum)[128]) {
  int last = 0;
  for (int i = 0; i < k_tiles; ++i) {
    const std::uint64_t tokens = ptx::swizzled_tile(m.stages.tokens(m.ring.stage, m.group));
    const std::uint64_t rows = ptx::swizzled_tile(m.stages.weights(m.ring.stage));
    m.wait();
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      ptx::Wgmma<typename Tile::Element, Tile::kRows>::run(sum, tokens + 2 * step, rows + 2 * step);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (i > 0) m.release(last);
    last = m.ring.stage;
    m.ring.advance();
  }
  ptx::wgmma_wait<0>();
  ptx::hold_registers(sum);
  if (k_tiles > 0) m.release(last);
}

// Of e4m3 the tensor core sums the 128 columns of a stage, for 64 weight rows at a time, a quarter;
// these sums are added in f32 while it works on the next quarter.
//
// The tokens come from registers: from shared memory, which has 128 bytes a clock, products of 64
// rows would ask for 176.
template <class Tile>
class E4m3Sums {
 public:
  __device__ E4m3Sums(const GemmArgs& a, MathWarp<Tile>& m, const Fragment& f, float (&sum)[128])
      : a_(a), m_(m), f_(f), sum_(sum) {}

  __device__ void add_stages(int k_tiles) {
    if (Tile::kGroupScales && k_tiles > 0) load_scales(0);
    for (int i = 0; i < k_tiles; ++i) add_stage(i, k_tiles);
  }

 private:
  static constexpr int kRows = 64, kQuarters = Tile::kRows / kRows, kSteps = 4;
  static_assert(kQuarters % 2 == 0, "the sums of a quarter change places");
  using Product = ptx::WgmmaRegisters<__nv_fp8_e4m3, kRows>;

  __device__ void load_scales(int i) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (f_.there[r]) next_scale_[r] = a_.x_scale[i * a_.x_scale_stride + f_.slot + 8 * r];
  }

  __device__ void wait_for_tokens() {
    // ldmatrix: lane % 16 names the row, lane / 16 the 16-byte chunk of two.
    const int row = m_.warp * 16 + m_.lane % 16, half = m_.lane / 16;
    const std::uint32_t tokens = m_.stages.tokens(m_.ring.stage, m_.group) + row * Tile::kRowBytes;
    m_.wait();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      ptx::load_matrices(x_[step], tokens + ((2 * step + half) ^ (row % 8)) * 16);
  }

  __device__ void start(int stage, int quarter) {
    float(&part)[kRows / 2] = part_[quarter % 2];
    const std::uint64_t rows =
        ptx::swizzled_tile(m_.stages.weights(stage) + quarter * kRows * Tile::kRowBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      Product::run(part, x_[step], rows + 2 * step, step > 0);
    ptx::wgmma_commit();
  }

  // The sums of a quarter are there.
  __device__ void finish(int stage, int quarter, const float (&scale)[2]) {
    float(&part)[kRows / 2] = part_[quarter % 2];
    ptx::hold_registers(part);
    if (quarter == kQuarters - 1) {
      ptx::hold_registers(x_);
      m_.release(stage);
    }
#pragma unroll
    for (int e = 0; e < kRows / 2; ++e) {
      float& sum = sum_[kRows / 2 * quarter + e];
      sum = fmaf(part[e], scale[e % 4 / 2], sum);
    }
  }

  // Between two stages no product is under way: the compiler would make all of them wait. The
  // other warpgroup has the tensor cores then.
  __device__ void add_stage(int i, int k_tiles) {
    const float scale[2] = {next_scale_[0], next_scale_[1]};
    if (Tile::kGroupScales && i + 1 < k_tiles) load_scales(i + 1);
    const int stage = m_.ring.stage;
    wait_for_tokens();
    start(stage, 0);
#pragma unroll
    for (int quarter = 1; quarter < kQuarters; ++quarter) {
      start(stage, quarter);
      ptx::wgmma_wait<1>();
      finish(stage, quarter - 1, scale);
    }
    ptx::wgmma_wait<0>();
    finish(stage, kQuarters - 1, scale);
    m_.ring.advance();
  }

  const GemmArgs& a_;
  MathWarp<Tile>& m_;
  const Fragment& f_;
  float (&sum_)[128];
  float next_scale_[2] = {1, 1};
  float part_[2][kRows / 2] = {};
  std::uint32_t x_[kSteps][4] = {};
};

// The sums times the scales of token and weight row; without scales of groups x has one a token.
template <class Tile>
__device__ inline void scale_sums(const GemmArgs& a, const MathWarp<Tile>& m, const Fragment& f,
                                  const float (&weight_scale)[2], float (&sum)[128]) {
  float x_scale[2] = {1, 1};
  if constexpr (!Tile::kGroupScales)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (f.there[r]) x_scale[r] = a.x_scale[f.slot + 8 * r];
  // The weights' through shared memory: a thread has loaded two, and needs 64.
  const int thread = m.warp * 32 + m.lane;
  ptx::named_barrier_sync(1 + m.group, 128);  // nobody reads those of the tile before
#pragma unroll
  for (int h = 0; h < 2; ++h) m.scales[h * Tile::kHalfRows + thread] = weight_scale[h];
  ptx::named_barrier_sync(1 + m.group, 128);
#pragma unroll
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    const auto both = load_pack<2>(m.scales + 8 * j + f.column());
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[4 * j + e] = sum[4 * j + e] * x_scale[e / 2] * both.v[e % 2];
  }
}

}  // namespace ostro::cuda
