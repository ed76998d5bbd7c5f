// Sums over ranks in each other's memory (kernels/peer_sum.h), and with them AddRmsNorm.
//
// Grid:     one block of 256 threads for each row, at most kPeerBlocks, which then take the next
//           rows in turn: they all run at once, and block b of a rank waits for block b of others.
// Rounds:   a thread writes its elements of a row to every other rank, each with the round of its
//           block beside it, and polls its own memory until the same elements of all ranks are
//           there: one crossing, no fence, no barrier. In two rounds rank row % ranks gets a row,
//           sums it, and writes the sum to all.
// Traffic:  (ranks - 1) * 8 bytes an element over NVLink, 2 * (ranks - 1) / ranks * 8 in two
//           rounds, besides the 14 of AddRmsNorm in memory.
// Bound by: the latency of NVLink for decode steps, then its bandwidth.
// Measured (two H200, bench/comm/nccl_bench.cc, hidden 4096): 3.8 us for a row, 15.1 for 128, 26.8
//           for 256; NCCL and add_rms_norm 9.6, 30.4, 36.1.
//
// The manner of NCCL's LL protocol (a flag in every word) and of the one-shot all-reduce of
// FasterTransformer, TensorRT-LLM and vLLM, where the norm is part of it too.
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/peer_sum.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/ptx/system_words.cuh"
#include "base/math.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 4;
constexpr int kStride = kThreads * kPack;
constexpr int kSpinsBetweenLooks = 1024;  // at whether to stop: that memory is the host's

using Four = Pack<float, kPack>;

// A pack is two pairs of words, each in a half of the row of its own, so that a warp writes whole
// lines.
__device__ std::byte* half_of(std::byte* row, int column, int half) {
  return row + half * (kPeerRowBytes / 2) + column / kPack * 16;
}

__device__ std::uint64_t marked(float x, std::uint32_t round) {
  return std::uint64_t(round) << 32 | __float_as_uint(x);
}
__device__ bool has_mark(std::uint64_t word, std::uint32_t round) { return word >> 32 == round; }
__device__ float value_of(std::uint64_t word) { return __uint_as_float(std::uint32_t(word)); }

__device__ void send(std::byte* row, int column, const Four& x, std::uint32_t round) {
  ptx::store_words(half_of(row, column, 0), marked(x.v[0], round), marked(x.v[1], round));
  ptx::store_words(half_of(row, column, 1), marked(x.v[2], round), marked(x.v[3], round));
}

// The thread's packs of `row`, all polled together; false if the group has been stopped.
template <int kSteps>
__device__ bool receive(std::byte* row, int first, int cols, std::uint32_t round,
                        const std::uint32_t* stopped, Four (&x)[kSteps]) {
  for (int spins = 1;; ++spins) {
    std::uint64_t words[kSteps][4];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kStride < cols)
        for (int half = 0; half < 2; ++half)
          ptx::load_words(half_of(row, first + s * kStride, half), words[s][2 * half],
                          words[s][2 * half + 1]);
    bool all = true;
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kStride < cols)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          all &= has_mark(words[s][i], round);
          x[s].v[i] = value_of(words[s][i]);
        }
    if (all) return true;
    if (spins % kSpinsBetweenLooks == 0 && ptx::load_word(stopped) != 0) return false;
  }
}

__device__ std::uint32_t next(std::uint32_t round) {
  // 0 stands in memory that nobody has written; the places must go on alternating.
  return round == 0xffffffff ? 2 : round + 1;
}

// The sum of `own` over the ranks, for one row of one block.
template <int kSteps>
struct Exchange {
  const Peers& peers;
  std::uint32_t round;
  int first, cols;

  __device__ std::byte* place(int rank, int from) const {
    const std::size_t table = round % kPeerPlaces * unsigned(peers.ranks + 1) + unsigned(from);
    return peers.memory[rank] + (table * kPeerBlocks + blockIdx.x) * kPeerRowBytes;
  }

  __device__ void send_to(int rank, int from, const Four (&x)[kSteps]) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kStride < cols) send(place(rank, from), first + s * kStride, x[s], round);
  }
  // To every other rank, beginning with the next, so that they do not all write to one.
  __device__ void send_to_all(int from, const Four (&x)[kSteps]) const {
    for (int i = 1; i < peers.ranks; ++i) send_to((peers.rank + i) % peers.ranks, from, x);
  }

  __device__ bool receive_from(int from, Four (&x)[kSteps]) const {
    return receive<kSteps>(place(peers.rank, from), first, cols, round, peers.stopped, x);
  }

  // What all ranks have sent here, and own, in rank order.
  __device__ bool add_up(const Four (&own)[kSteps], Four (&sum)[kSteps]) const {
    for (int q = 0; q < peers.ranks; ++q) {
      Four part[kSteps];
      if (q == peers.rank) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) part[s] = own[s];
      } else if (!receive_from(q, part)) {
        return false;
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int i = 0; i < kPack; ++i)
          sum[s].v[i] = q == 0 ? part[s].v[i] : sum[s].v[i] + part[s].v[i];
    }
    return true;
  }

  __device__ bool in_one_round(const Four (&own)[kSteps], Four (&sum)[kSteps]) const {
    send_to_all(peers.rank, own);
    return add_up(own, sum);
  }
  __device__ bool in_two_rounds(int owner, const Four (&own)[kSteps], Four (&sum)[kSteps]) const {
    if (owner != peers.rank) {
      send_to(owner, peers.rank, own);
      return receive_from(peers.ranks, sum);
    }
    if (!add_up(own, sum)) return false;
    send_to_all(peers.ranks, sum);
    return true;
  }
};

// norm.cuh's, in its order.
__device__ float block_sum(float x) {
  __shared__ float partial[kThreads / 32];
  x = warp_sum(x);
  __syncthreads();  // the row before may still be read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
  return sum;
}

// Where the sums of a call go: back to where the data was.
struct InPlace {
  template <int kSteps>
  struct Row {
    __device__ Row(const InPlace&, int, int) {}
    __device__ void fetch(const InPlace&, std::int64_t, int, int) {}
    __device__ void put(const InPlace&, float* x, std::int64_t, int first, int cols,
                        const Four (&sum)[kSteps]) const {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        if (first + s * kStride < cols) store_pack(x + first + s * kStride, sum[s]);
    }
  };
};

// Onto the residual stream, and its norm to y.
template <class W, class Y>
struct Norm {
  float* residual;
  std::int64_t residual_stride;
  const W* weight;
  Y* y;
  std::int64_t y_stride;
  float eps;

  // What a thread has of the weight and of a row of the residual stream: loaded before the others'
  // data are there.
  template <int kSteps>
  struct Row {
    Pack<W, kPack> weight[kSteps];
    Four kept[kSteps];

    __device__ Row(const Norm& norm, int first, int cols) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        if (const int i = first + s * kStride; norm.y && i < cols)
          weight[s] = load_pack<kPack>(norm.weight + i);
    }
    __device__ void fetch(const Norm& norm, std::int64_t t, int first, int cols) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        if (const int i = first + s * kStride; i < cols)
          kept[s] = load_pack<kPack>(norm.residual + t * norm.residual_stride + i);
    }
    __device__ void put(const Norm& norm, float*, std::int64_t t, int first, int cols,
                        const Four (&sum)[kSteps]) {
      float squares = 0;
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        if (const int i = first + s * kStride; i < cols) {
#pragma unroll
          for (int j = 0; j < kPack; ++j) kept[s].v[j] += sum[s].v[j];
          store_pack(norm.residual + t * norm.residual_stride + i, kept[s]);
#pragma unroll
          for (int j = 0; j < kPack; ++j) squares += kept[s].v[j] * kept[s].v[j];
        }
      if (!norm.y) return;
      const float scale = 1 / sqrtf(block_sum(squares) / float(cols) + norm.eps);
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        if (const int i = first + s * kStride; i < cols) {
          Pack<Y, kPack> out;
#pragma unroll
          for (int j = 0; j < kPack; ++j)
            out.v[j] = rounded_to<Y>(widen(weight[s].v[j]) * (kept[s].v[j] * scale));
          store_pack(norm.y + t * norm.y_stride + i, out);
        }
    }
  };
};

// x is [rows, cols], its last row as long as n elements make it.
template <class Out, int kSteps>
__global__ void __launch_bounds__(kThreads)
    peer_sum_kernel(const __grid_constant__ Peers peers, float* x, std::int64_t n, int cols,
                    bool two_rounds, Out out) {
  const int first = int(threadIdx.x) * kPack;
  typename Out::template Row<kSteps> beside(out, first, cols);  // weights, which no kernel writes
  begin_kernel();
  std::uint32_t round = peers.rounds[blockIdx.x];
  const std::int64_t rows = (n + cols - 1) / cols;
  for (std::int64_t t = blockIdx.x; t < rows; t += gridDim.x) {
    float* const row = x + t * cols;
    const std::int64_t left = n - t * cols;
    const int count = left < cols ? int(left) : cols;
    round = next(round);
    const Exchange<kSteps> exchange{peers, round, first, count};
    Four own[kSteps], sum[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kStride < count) own[s] = load_pack<kPack>(row + first + s * kStride);
    beside.fetch(out, t, first, count);
    const bool done = two_rounds ? exchange.in_two_rounds(int(t % peers.ranks), own, sum)
                                 : exchange.in_one_round(own, sum);
    if (!__syncthreads_and(done)) return;
    beside.put(out, row, t, first, count, sum);
  }
  if (threadIdx.x == 0) peers.rounds[blockIdx.x] = round;
}

template <int kSteps, class Out>
void start(cudaStream_t stream, const Peers& peers, const View& x, std::int64_t n, int cols,
           bool two_rounds, const Out& out) {
  static_assert(kSteps * kStride <= kMostPeerColumns);
  launch(stream,
         {.blocks = std::min<std::int64_t>(ceil_div<std::int64_t>(n, cols), kPeerBlocks),
          .threads = kThreads},
         peer_sum_kernel<Out, kSteps>, peers, static_cast<float*>(x.data), n, cols, two_rounds,
         out);
}

}  // namespace

bool peer_sum_takes(const View& data) {
  return peer_sum_pays(data.rows * data.cols) && data.rows * data.cols % kPack == 0 &&
         data.contiguous() && reinterpret_cast<std::uintptr_t>(data.data) % 16 == 0;
}

void peer_sum(cudaStream_t stream, const Peers& peers, const View& data, bool two_rounds) {
  const std::int64_t n = data.rows * data.cols;
  OSTRO_CHECK(n % kPack == 0 && data.contiguous(), "peer_sum of ", describe(data));
  start<1>(stream, peers, data, n, kStride, two_rounds, InPlace{});
}

bool peer_sum_norm_takes(const PeerSumNorm& op) {
  const auto packs = [](const View& v) { return !v || rows_aligned(v, kPack * size_of(v.dtype)); };
  return peer_sum_pays(op.x.rows * op.x.cols) && op.x.cols % kPack == 0 &&
         op.x.cols <= kMostPeerColumns && op.x.contiguous() && packs(op.x) && packs(op.residual) &&
         packs(op.weight) && packs(op.y);
}

void peer_sum_norm(cudaStream_t stream, const Peers& peers, const PeerSumNorm& op,
                   bool two_rounds) {
  const DType weight = op.weight ? op.weight.dtype : DType::f32;
  const DType y = op.y ? op.y.dtype : DType::f32;
  const std::int64_t n = op.x.rows * op.x.cols;
  visit_dtype<float, f16, bf16>(weight, "a sum and norm in peer memory", [&]<class W>() {
    visit_dtype<float, f16, bf16>(y, "a sum and norm in peer memory", [&]<class Y>() {
      const Norm<device_t<W>, device_t<Y>> out{
          .residual = static_cast<float*>(op.residual.data),
          .residual_stride = op.residual.row_stride,
          .weight = static_cast<const device_t<W>*>(op.weight.data),
          .y = static_cast<device_t<Y>*>(op.y.data),
          .y_stride = op.y.row_stride,
          .eps = op.eps};
      const int cols = int(op.x.cols);
      cols <= 4 * kStride ? start<4>(stream, peers, op.x, n, cols, two_rounds, out)
                          : start<6>(stream, peers, op.x, n, cols, two_rounds, out);
    });
  });
}

}  // namespace ostro::cuda
