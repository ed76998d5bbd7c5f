// What the e4m3 GEMMs of a dense layer for few tokens share (gemm_e4m3_dense.cu,
// gemm_e4m3_wave.cu): their stages, the thread that fills them, and what a warpgroup sums of them.
#pragma once

#include "backends/cuda/kernels/gemm_stages.cuh"
#include "backends/cuda/ptx/tma.cuh"
#include "backends/cuda/ptx/wgmma.cuh"
#include "quant/e4m3.h"

namespace ostro::cuda {

struct DecodeMaps {
  CUtensorMap weights, x;
};

template <class Tile>
DecodeMaps decode_maps(const GemmArgs& a) {
  return {.weights =
              swizzled_map(a.weight.data, a.n, a.k, a.weight.stride, Tile::kRows / Tile::kCluster),
          .x = swizzled_map(a.x, a.slots, a.k, a.x_stride, Tile::kTokens)};
}

// By one thread: the weight rows from n0 on, in a cluster a part of them for all its blocks, and
// the tokens from t0 on.
template <class Tile>
class DecodeCopies {
 public:
  __device__ DecodeCopies(const DecodeMaps& maps, const Stages<Tile>& stages, int n0, int t0)
      : maps_(maps), stages_(stages), n0_(n0), t0_(t0) {}

  __device__ void copy(int k_tiles) const {
    // Weights do not change during a step: they need not wait for the predecessor.
    const int first = min(Tile::kStages, k_tiles);
    for (int i = 0; i < first; ++i) copy_weights(i, i);
    begin_kernel();
    for (int i = 0; i < first; ++i) copy_tokens(i, i);
    StageRing<Tile::kStages> ring;
    for (int i = first; i < k_tiles; ++i) {
      ptx::barrier_wait(stages_.empty(ring.stage), ring.parity);
      copy_weights(i, ring.stage);
      copy_tokens(i, ring.stage);
      ring.advance();
    }
  }

 private:
  // Announces all that comes to this block in the stage; another's part may have come already.
  __device__ void copy_weights(int i, int stage) const {
    const std::uint32_t barrier = stages_.full(stage), to = stages_.weights(stage);
    ptx::barrier_arrive_expect(barrier, Tile::kStageBytes);
    if constexpr (Tile::kCluster == 1) {
      ptx::copy_box(to, maps_.weights, i * Tile::kK, n0_, barrier);
    } else {
      constexpr auto kAll = std::uint16_t((1 << Tile::kCluster) - 1);
      constexpr int kPartRows = Tile::kRows / Tile::kCluster;
      static_assert(kPartRows % 8 == 0, "parts swizzle alike");
      const int first = int(blockIdx.x) % Tile::kCluster * kPartRows;
      ptx::copy_box_to(kAll, to + first * Tile::kK, maps_.weights, i * Tile::kK, n0_ + first,
                       barrier);
    }
  }
  __device__ void copy_tokens(int i, int stage) const {
    ptx::copy_box(stages_.tokens(stage), maps_.x, i * Tile::kK, t0_, stages_.full(stage));
  }

  const DecodeMaps& maps_;
  const Stages<Tile>& stages_;
  const int n0_, t0_;
};

// A thread of a warpgroup that multiplies, the group-th, with 64 rows (M) of the product. These are
// tokens if Tile::kTokensAreRows, else weight rows; the others are its columns (N).
template <class Tile>
class DecodeSums {
  static constexpr int kN = Tile::kTokensAreRows ? Tile::kRows : Tile::kTokens;

 public:
  __device__ DecodeSums(const Stages<Tile>& stages, int group)
      : stages_(stages), lane_(int(threadIdx.x) % 32), group_(group) {}

  // sum() += the products of the next stage, or of the next two.
  __device__ void add_stage() {
    const int stage = start(part_[0]);
    ptx::wgmma_wait<0>();
    finish(part_[0], stage);
  }
  __device__ void add_two_stages() {
    const int stage = start(part_[0]), next = start(part_[1]);
    ptx::wgmma_wait<1>();
    finish(part_[0], stage);
    ptx::wgmma_wait<0>();
    finish(part_[1], next);
  }
  __device__ float (&sum())[kN / 2] { return sum_; }

 private:
  using Product = ptx::Wgmma<__nv_fp8_e4m3, kN>;

  // The products of the next stage, when it has come.
  __device__ int start(float (&part)[kN / 2]) {
    const int stage = ring_.stage;
    ptx::barrier_wait(stages_.full(stage), ring_.parity);
    const auto operand = [&](bool tokens) {
      return ptx::swizzled_tile(tokens ? stages_.tokens(stage, group_ * 64)
                                       : stages_.weights(stage));
    };
    const std::uint64_t rows = operand(Tile::kTokensAreRows),
                        columns = operand(!Tile::kTokensAreRows);
    ptx::wgmma_fence();
    Product::run_first(part, rows, columns);
#pragma unroll
    for (int step = 1; step < Tile::kK / 32; ++step)
      Product::run(part, rows + 2 * step, columns + 2 * step);
    ptx::wgmma_commit();
    ring_.advance();
    return stage;
  }

  // The products of the stage are there.
  __device__ void finish(float (&part)[kN / 2], int stage) {
    ptx::hold_registers(part);
    __syncwarp();
    // Copies of all blocks of the cluster come here next.
    if constexpr (Tile::kCluster == 1) {
      if (lane_ == 0) ptx::barrier_arrive(stages_.empty(stage));
    } else {
      if (lane_ < Tile::kCluster) ptx::barrier_arrive(stages_.empty(stage), lane_);
    }
#pragma unroll
    for (int j = 0; j < kN / 2; ++j) sum_[j] += part[j];
  }

  const Stages<Tile>& stages_;
  const int lane_, group_;
  StageRing<Tile::kStages> ring_;
  float sum_[kN / 2] = {}, part_[Tile::kParts][kN / 2] = {};
};

}  // namespace ostro::cuda
