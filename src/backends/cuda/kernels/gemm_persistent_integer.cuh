// The GEMM of experts of int4 and int8 weights in steps of up to 256 tokens: what the kernel of
// gemm_persistent.cuh has for them, which gemm_persistent_int4.cu and gemm_persistent_int8.cu
// instantiate.
//
// Roles:    as in gemm_integer.cuh: weights are the rows (M) of the product, widened in registers,
//           tokens its columns (N).
// Numbers:  bit by bit those of gemm_integer.cuh.
// Grid:     as in gemm_persistent.cuh: a block for each multiprocessor, which walks the tiles of
//           256 weight rows (with SwiGLU 128 of gate and the up rows of the same outputs) x kTokens
//           tokens of one expert. Where those are too few, of 64 weight rows.
// Pipeline: copies as in gemm_persistent.cuh, in stages of 128 bytes of a weight row: 256 columns
//           of int4, 128 of int8. Four warpgroups multiply, each 64 rows. With SwiGLU these are
//           gate and up rows in turns of eight, so that a thread has both of an output. Of tiles of
//           64 rows a warpgroup takes every fourth stage, and the sums go from one to the next.
// Traffic:  weights once for each tile of tokens, the first that L2 gives up; tokens once for each
//           tile of weight rows, from L2.
// Bound by: memory, of int8 and of int4 up to 32 tokens; of int4 beyond, it is not known by what:
//           there 57 % of the issue slots are taken.
// Floor on an H100: the bytes of each expert in use / 3.15e12 s.
// Measured (H100 80 GB HBM3, cuda_kernels_bench, Mixtral 8x7B's shapes; of the floor): an expert
//           layer of int4 83 us at 1 token (69 %), 245 at 8 (82 %), 284 at 32 (81 %), 319 at 64 (72
//           %), 338 at 128 (68 %), 582 at 256 (41 %); of int8 137 us at 1 (82 %), 490 at 64 (91 %),
//           519 at 128 (86 %). Of those of int4 at 32 tokens gate and up take 180 us (2.70 TB/s)
//           and down 92 (2.65), at 128 203 (2.47) and 107 (2.34).
#pragma once

#include "backends/cuda/kernels/gemm_integer.cuh"
#include "backends/cuda/kernels/gemm_persistent.cuh"

namespace ostro::cuda {

template <class X_, int kBits_, int kTokens_, bool kSwiglu_, bool kSplit_ = false>
struct PersistentIntegerTile {
  using X = X_;
  using Element = std::uint8_t;  // of weights: one of int8, two of int4
  static constexpr int kBits = kBits_, kTokens = kTokens_;
  static constexpr bool kSwiglu = kSwiglu_, kSplit = kSplit_, kInt4 = kBits == 4;
  static_assert(!kSplit || !kSwiglu);
  static constexpr int kGroups = 4;  // of warps that multiply
  static constexpr int kHalves = kSplit ? 1 : 2, kHalfRows = kSplit ? 64 : 128;
  static constexpr int kRows = kHalves * kHalfRows, kOutputs = kSwiglu ? kHalfRows : kRows;
  static constexpr int kRowBytes = 128;  // of a stage: a swizzle row
  static constexpr int kHalfBytes = kHalfRows * kRowBytes, kWeightBytes = kHalves * kHalfBytes;
  static constexpr int kK = kRowBytes * 8 / kBits;
  static constexpr int kGroupColumns = 128;  // columns that are summed by the tensor core
  static constexpr int kParts = kK / kGroupColumns;
  // Tokens: [64 columns][token], 128-byte swizzled.
  static constexpr int kTokenBlocks = kK / 64, kTokenBlockBytes = kTokens * 128;
  static constexpr int kTokenBytes = kTokenBlocks * kTokenBlockBytes;
  static_assert(kTokenBlockBytes % 1024 == 0, "a swizzled tile starts at 1024 bytes");
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  // Behind the stages, of which there are as many as fit: the sums that go from one warpgroup to
  // the next; barriers.
  static constexpr int kRelayBytes = kSplit ? 64 * kTokens * 4 : 0;
  static constexpr int kStages = ((227 - 2) * 1024 - kRelayBytes) / kStageBytes;
  static constexpr int kRelay = kStages * kStageBytes, kBarriers = kRelay + kRelayBytes;
  static constexpr int kSharedBytes = kBarriers + kStages * 16 + 1024;
  static_assert(kSharedBytes <= 227 << 10);
  static constexpr int kMathThreads = 128 * kGroups, kMathWarps = kMathThreads / 32;
  static constexpr int kThreads = kMathThreads + 128;
  static constexpr int kReaders = kSplit ? 4 : 4 * kGroups;  // warps that read a stage
  static constexpr int kTokenWarps = 2, kTokenRowStep = 8;
  static constexpr bool kBoxes = false, kSharesRegisters = true;
  static constexpr int kMathRegisters = 112, kCopyRegisters = 32;
  // A block owns what its threads have at the launch: asked for more, setmaxnreg waits for ever.
  static_assert(128 * (kGroups * kMathRegisters + kCopyRegisters) <=
                kThreads * (65536 / kThreads / 8 * 8));
};

// What a thread of the warps that copy tokens does; it counts from the first of them. It has 16
// bytes of every 128 of some rows: of few instructions, since a block waits for these two warps.
template <class Tile>
class IntegerTokenCopies {
 public:
  // No more than L2 needs to answer, for only then a stage is announced.
  static constexpr int kLag = Tile::kStages < 6 ? Tile::kStages - 2 : 4;

  __device__ IntegerTokenCopies(const GemmArgs& a, const PersistentMemory<Tile>& memory, int thread)
      : a_(a),
        memory_(memory),
        chunk_(thread % 8),
        row_(thread / 8),
        to_(row_ * 128 + ((chunk_ ^ row_) << 4)) {}

  __device__ void find_rows(const TokenTile& tile) {
    count_ = tile.count;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int slot = tile.first + min(row_ + j * Tile::kTokenRowStep, tile.count - 1);
      const std::int64_t row = a_.rows ? a_.rows[slot] : slot;
      from_[j] = static_cast<const char*>(a_.x) + row * a_.x_stride * 2 + chunk_ * 16;
    }
  }

  __device__ void copy_stage(int i, int stage) {
    const std::uint32_t to = memory_.tokens(stage) + to_;
    const int left = (a_.k - i * Tile::kK) * 2;  // bytes of a row
    if (left >= Tile::kTokenBlocks * 128)
      copy_rows(to, [](std::uint32_t at, const char* from, int) { ptx::copy16(at, from); });
    else
      copy_rows(to, [&](std::uint32_t at, const char* from, int column) {
        const int bytes = max(0, min(16, left - column - chunk_ * 16));
        ptx::copy16(at, bytes > 0 ? from : static_cast<const char*>(a_.x), bytes);
      });
#pragma unroll
    for (int j = 0; j < kLoads; ++j) from_[j] += Tile::kTokenBlocks * 128;
  }

 private:
  static constexpr int kLoads = Tile::kTokens / Tile::kTokenRowStep;

  template <class Copy>
  __device__ void copy_rows(std::uint32_t to, Copy&& copy) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (row_ + j * Tile::kTokenRowStep >= count_) break;
#pragma unroll
      for (int b = 0; b < Tile::kTokenBlocks; ++b)
        copy(to + j * Tile::kTokenRowStep * 128 + b * Tile::kTokenBlockBytes, from_[j] + b * 128,
             b * 128);
    }
  }

  const GemmArgs& a_;
  const PersistentMemory<Tile>& memory_;
  const int chunk_, row_;
  const std::uint32_t to_;
  int count_ = 0;
  const char* from_[kLoads];
};

// A thread of the warpgroups that multiply.
template <class Tile>
class PersistentIntegerSums {
 public:
  __device__ PersistentIntegerSums(const GemmArgs& a, const TmaWeights& weights,
                                   const PersistentMemory<Tile>& memory, int stages)
      : a_(a),
        weights_(weights),
        memory_(memory),
        lane_(int(threadIdx.x) % 32),
        warp_(int(threadIdx.x) / 32 % 4),
        group_(__shfl_sync(~0u, int(threadIdx.x) / 128, 0)),
        stages_(stages),
        groups_((a.k + Tile::kGroupColumns - 1) / Tile::kGroupColumns) {}

  __device__ void multiply() {
    PersistentWalk<Tile> walk(a_);
    while (walk.take(a_)) {
      row_tile_ = walk.row_tile;
      tile_ = walk.tile;
      find_rows();
      more_ = walk.next < walk.row_tiles * walk.token_tiles;
      if constexpr (Tile::kTokens == 8)
        multiply_least<8>();
      else if constexpr (Tile::kTokens == 16)
        multiply_least<8, 16>();
      else if constexpr (Tile::kTokens == 32)
        multiply_least<8, 16, 32>();
      else
        multiply_least<16, 32, 48, 64>();
    }
  }

 private:
  // This thread's two rows of the tile's weights: a fragment's row and the row 8 below. With SwiGLU
  // the gate row and the up row of an output. Neighbours of int4 are four rows apart, so that the
  // chunks that eight lanes load stand in different banks.
  __device__ int row_in_eight() const {
    const int r = lane_ / 4;
    return Tile::kInt4 ? r % 2 * 4 + r / 2 : r;
  }
  __device__ int output(int e) const {
    const int first = Tile::kSwiglu ? group_ * 32 + warp_ * 8
                                    : (Tile::kSplit ? 0 : group_ * 64) + warp_ * 16 + 8 * e;
    return row_tile_ * Tile::kOutputs + first + row_in_eight();
  }
  __device__ int row_byte(int e) const {
    const int row = output(e) - row_tile_ * Tile::kOutputs;
    return row * Tile::kRowBytes + (Tile::kSwiglu ? e * Tile::kHalfBytes : 0);
  }

  // Where the scales of this thread's rows are.
  __device__ void find_rows() {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const auto& matrix = (Tile::kSwiglu && e == 1 ? weights_.up : weights_.weight)[tile_.expert];
      const std::int64_t row = min(a_.n - 1, output(e));
      if constexpr (Tile::kInt4)
        scale_[e] = reinterpret_cast<const __nv_bfloat16*>(matrix.scale) + row * a_.w_scale_stride;
      else
        scale_[e] = matrix.scale + row;
    }
  }
  // Of this thread's rows, of both groups of columns of a stage; the second may lie in the padding
  // of the row.
  __device__ void load_scales(int stage, std::uint32_t (&scales)[2]) const {
    if constexpr (Tile::kInt4)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        scales[e] =
            stage < stages_ ? __ldg(static_cast<const std::uint32_t*>(scale_[e]) + stage) : 0;
  }

  // Tokens that are not there are not multiplied, eight or sixteen at a time.
  template <int N, int... kMore>
  __device__ void multiply_least() {
    if constexpr (sizeof...(kMore) > 0)
      if (tile_.count > N) return multiply_least<kMore...>();
    if constexpr (Tile::kSplit)
      multiply_in_turns<N>();
    else
      multiply_tile<N>();
  }

  template <int N>
  __device__ void multiply_tile() {
    float sum[N / 2] = {};
    std::uint32_t scales[2] = {}, next[2] = {};
    load_scales(0, next);
    for (int i = 0; i < stages_; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) scales[e] = next[e];
      load_scales(i + 1, next);
      add_stage<N>(i, scales, sum, [] {});
      ring_.advance();
    }
    finish<N>(sum);
  }

  // A warpgroup takes every fourth stage, of all tiles together, and adds what it gives to the sums
  // that come from the one before.
  template <int N>
  __device__ void multiply_in_turns() {
    float sum[N / 2] = {};
    std::uint32_t scales[2] = {}, next[2] = {};
    const int first = (group_ - turn_ + Tile::kGroups) % Tile::kGroups;
    load_scales(first, next);
    for (int i = 0; i < stages_; ++i) {
      if (turn_ == group_) {
#pragma unroll
        for (int e = 0; e < 2; ++e) scales[e] = next[e];
        load_scales(i + Tile::kGroups, next);
        add_stage<N>(i, scales, sum, [&] {
          receive(sum);
          if (i == 0)
#pragma unroll
            for (float& s : sum) s = 0;
        });
        const bool last = i + 1 == stages_;
        if (last) finish<N>(sum);
        if (!last || more_) send(sum);
      }
      turn_ = (turn_ + 1) % Tile::kGroups;
      ring_.advance();
    }
  }
  // Where a thread leaves its sums for that of the next warpgroup with the same place in it.
  __device__ float4& relay(int j) const {
    return reinterpret_cast<float4*>(memory_.data + Tile::kRelay)[j * 128 + warp_ * 32 + lane_];
  }
  template <int kCount>
  __device__ void receive(float (&sum)[kCount]) {
    if (group_ == 0 && !began_) {  // the first stage of all
      began_ = true;
      return;
    }
    ptx::named_barrier_sync(1 + group_, 256);
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      const float4 four = relay(j);
      sum[4 * j] = four.x;
      sum[4 * j + 1] = four.y;
      sum[4 * j + 2] = four.z;
      sum[4 * j + 3] = four.w;
    }
  }
  template <int kCount>
  __device__ void send(const float (&sum)[kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j)
      relay(j) = {sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]};
    const int next = (group_ + 1) % Tile::kGroups;
    ptx::named_barrier_arrive(1 + next, 256);
  }

  // sum += the products of the next stage, after before_adding() has run.
  template <int N, class Before>
  __device__ void add_stage(int i, const std::uint32_t (&scales)[2], float (&sum)[N / 2],
                            Before&& before_adding) {
    const int stage = ring_.stage;
    ptx::barrier_wait(memory_.full(stage), ring_.parity);
    const unsigned char* const weights = memory_.data + stage * Tile::kStageBytes;
#pragma unroll
    for (int p = 0; p < Tile::kParts; ++p) {
      // Rows of int4 may end in the middle of a stage.
      if (p > 0 && i * Tile::kParts + p >= groups_) break;
      IntegerRows<Tile> rows{{}, lane_, {}};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        rows.row[e] = weights + row_byte(e);
        if constexpr (Tile::kInt4) rows.row[e] += ((4 * p + lane_ % 4) ^ row_in_eight()) * 16;
      }
      float part[N / 2];
      multiply_group<Tile, N>(part, rows, memory_.tokens(stage) + p * 2 * Tile::kTokenBlockBytes);
      if (p == Tile::kParts - 1 || i * Tile::kParts + p + 1 >= groups_) release(stage);
      if (p == 0) before_adding();
      float scale[2] = {1, 1};
      if constexpr (Tile::kInt4)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          scale[e] = __uint_as_float(p == 0 ? scales[e] << 16 : scales[e] & 0xffff0000);
#pragma unroll
      for (int j = 0; j < N / 2; ++j) sum[j] = fmaf(part[j], scale[j % 4 / 2], sum[j]);
    }
  }
  __device__ void release(int stage) const {
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(memory_.empty(stage));
  }

  template <int N>
  __device__ void finish(float (&sum)[N / 2]) const {
    if constexpr (!Tile::kInt4) {
      const float scale[2] = {__ldg(static_cast<const float*>(scale_[0])),
                              __ldg(static_cast<const float*>(scale_[1]))};
#pragma unroll
      for (int i = 0; i < N / 2; ++i) sum[i] *= scale[i % 4 / 2];
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (Tile::kSwiglu && i % 4 >= 2) continue;
      const int token = i / 4 * 8 + lane_ % 4 * 2 + i % 2, at = output(i % 4 / 2);
      float value = sum[i];
      if constexpr (Tile::kSwiglu) value = swiglu(value, sum[i + 2]);
      if (token < tile_.count && at < a_.n)
        store_output(a_, tile_.first + token, at, Pack<float, 1>{{value}});
    }
  }

  const GemmArgs& a_;
  const TmaWeights& weights_;
  const PersistentMemory<Tile>& memory_;
  const int lane_, warp_, group_, stages_, groups_;
  StageRing<Tile::kStages> ring_;
  int turn_ = 0, row_tile_ = 0;
  bool began_ = false, more_ = false;
  TokenTile tile_{};
  const void* scale_[2];
};

template <class X, int kBits, bool kSwiglu>
void start_gemm_persistent_integer_tile(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                                        int processors) {
  const auto start = [&]<int kTokens, bool kSplit = false>() {
    using Tile = PersistentIntegerTile<X, kBits, kTokens, kSwiglu, kSplit>;
    start_gemm_persistent<Tile, PersistentIntegerSums<Tile>, IntegerTokenCopies<Tile>>(stream, g, w,
                                                                                       processors);
  };
  switch (g.token_tile) {
    case 8:
      if constexpr (!kSwiglu)
        if (few_wide_tiles(g, w, processors)) return start.template operator()<8, true>();
      return start.template operator()<8>();
    case 16:
      return start.template operator()<16>();
    case 32:
      return start.template operator()<32>();
    case 64:
      return start.template operator()<64>();
  }
  OSTRO_CHECK(false, "no kernel for tiles of ", g.token_tile, " tokens");
}

template <int kBits>
void start_gemm_persistent_integer_type(cudaStream_t stream, const Gemm& g, const HostWeights& w,
                                        int processors) {
  visit_dtype<f16, bf16>(g.x_type, "the GEMM of experts of integer weights", [&]<class T>() {
    using X = device_t<T>;
    g.swiglu ? start_gemm_persistent_integer_tile<X, kBits, true>(stream, g, w, processors)
             : start_gemm_persistent_integer_tile<X, kBits, false>(stream, g, w, processors);
  });
}

}  // namespace ostro::cuda
