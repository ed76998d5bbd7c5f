// The sums of the GEMM of prompts (gemm_tma.cuh): 64 tokens times all weight rows of a tile, for
// one warpgroup, from the stages that come.
#pragma once

#include "backends/cuda/kernels/gemm_tma_store.cuh"
#include "backends/cuda/kernels/gemm_tma_tile.cuh"
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
    const std::uint64_t tokens =
        ptx::swizzled_tile(m.stages.tokens(m.ring.stage, m.group * Tile::kPartTokens));
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

// Of e4m3 the tensor core sums the 128 columns of a stage, for half of the weight rows at a time.
// While a warpgroup adds these sums in f32, the other has the tensor cores.
template <class Tile>
class E4m3Sums {
 public:
  __device__ E4m3Sums(const GemmArgs& a, MathWarp<Tile>& m, const Fragment& f, float (&sum)[128])
      : a_(a), m_(m), f_(f), sum_(sum) {}

  __device__ void add_stages(int k_tiles) {
    if (Tile::kGroupScales) load_scales(0, k_tiles);
    for (int first = 0; first < k_tiles; first += kQuad) {
      if (Tile::kGroupScales) {
        scale_[0] = next_scale_[0];
        scale_[1] = next_scale_[1];
        load_scales(first + kQuad, k_tiles);
      }
      for (int i = first; i < min(first + kQuad, k_tiles); ++i) add_stage(i);
    }
  }

 private:
  static constexpr int kRows = 128, kHalves = Tile::kRows / kRows, kSteps = 4, kQuad = 4;
  using Product = ptx::Wgmma<__nv_fp8_e4m3, kRows>;

  // The lanes of a quad have the same two tokens: each loads their scales of one of the stages from
  // `first` on, as many stages ahead as a quad has lanes: one alone is sooner over than the load.
  __device__ void load_scales(int first, int k_tiles) {
    const int i = first + f_.lane % kQuad;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (i < k_tiles && f_.there[r])
        next_scale_[r] = a_.x_scale[i * a_.x_scale_stride + f_.slot + 8 * r];
  }

  __device__ void start(int stage, int half) {
    const std::uint64_t tokens =
        ptx::swizzled_tile(m_.stages.tokens(stage, m_.group * Tile::kPartTokens));
    const std::uint64_t rows =
        ptx::swizzled_tile(m_.stages.weights(stage) + half * kRows * Tile::kRowBytes);
    ptx::wgmma_fence();
    Product::run_first(part_, tokens, rows);
#pragma unroll
    for (int step = 1; step < kSteps; ++step)
      Product::run(part_, tokens + 2 * step, rows + 2 * step);
    ptx::wgmma_commit();
  }

  __device__ void add_stage(int i) {
    float scale[2] = {1, 1};
    const int stage = m_.ring.stage;
    m_.wait();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      start(stage, half);
      if (Tile::kGroupScales && half == 0)
#pragma unroll
        for (int r = 0; r < 2; ++r) scale[r] = __shfl_sync(~0u, scale_[r], i % kQuad, kQuad);
      ptx::wgmma_wait<0>();
      ptx::hold_registers(part_);
      if (half == kHalves - 1) m_.release(stage);
#pragma unroll
      for (int e = 0; e < kRows / 2; ++e) {
        float& sum = sum_[kRows / 2 * half + e];
        sum = fmaf(part_[e], scale[e % 4 / 2], sum);
      }
    }
    m_.ring.advance();
  }

  const GemmArgs& a_;
  MathWarp<Tile>& m_;
  const Fragment& f_;
  float (&sum_)[128];
  float scale_[2] = {1, 1}, next_scale_[2] = {1, 1};
  float part_[kRows / 2] = {};
};

// Of e4m3: the scales of this thread's two weight rows of the tile, of each half `thread` of its
// group; of its two tokens, unless they have one for each stage.
struct TileScales {
  float weight[2] = {0, 0}, x[2] = {1, 1};
};

// The sums times the scales of token and weight row.
template <class Tile>
__device__ inline void scale_sums(const MathWarp<Tile>& m, const Fragment& f,
                                  const TileScales& scales, float (&sum)[128]) {
  // The weights' through shared memory: a thread has loaded two, and needs 64.
  const int thread = m.warp * 32 + m.lane;
  ptx::named_barrier_sync(1 + m.group, 128);  // nobody reads those of the tile before
#pragma unroll
  for (int h = 0; h < 2; ++h) m.scales[h * Tile::kHalfRows + thread] = scales.weight[h];
  ptx::named_barrier_sync(1 + m.group, 128);
#pragma unroll
  for (int j = 0; j < Tile::kRows / 8; ++j) {
    const auto both = load_pack<2>(m.scales + 8 * j + f.column());
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[4 * j + e] = sum[4 * j + e] * scales.x[e / 2] * both.v[e % 2];
  }
}

}  // namespace ostro::cuda
