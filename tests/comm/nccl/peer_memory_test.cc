// Sums in peer memory against plain sums. Ranks may share a GPU here: their kernels then wait for
// each other's turns, which takes long and changes nothing else.
#include "comm/nccl/peer_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "backends/cuda/backend.h"
#include "backends/cuda/launch.h"
#include "comm/local/run_ranks.h"
#include "comm/nccl/count_gpus.h"
#include "ops/norm.h"

namespace ostro::comm::testing {
namespace {

using nccl::PeerMemory;

int gpus = 0;

// A value for each element, rank and call; sums of them depend on the order.
float value(std::int64_t i, int rank, int call) {
  const auto x = std::uint32_t(i * 2654435761 + rank * 40503 + call * 69069 + 12345);
  return (float((x >> 8) & 0xffff) - 32768.f) * std::ldexp(1.f, int(x % 9) - 20);
}

std::vector<float> values(std::int64_t n, int rank, int call) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) v[std::size_t(i)] = value(i, rank, call);
  return v;
}

std::vector<float> sum_of_all(std::int64_t n, int ranks, int call) {
  std::vector<float> sum = values(n, 0, call);
  for (int r = 1; r < ranks; ++r)
    for (std::int64_t i = 0; i < n; ++i) sum[std::size_t(i)] += value(i, r, call);
  return sum;
}

// One rank of a group, with its GPU.
struct Member {
  explicit Member(World& world)
      : host(world.communicator()),
        gpu(cuda::make_backend(host.rank() % gpus)),
        queue(cuda::queue_of(*gpu)),
        memory(PeerMemory::open(host, queue, why)) {
    OSTRO_CHECK(memory, why);
  }
  ~Member() { memory->close(host); }

  View on_gpu(Buffer& buffer, DType type, std::int64_t rows, std::int64_t cols, const void* data) {
    const View there = [&] {
      buffer = gpu->allocate(std::size_t(rows * cols) * size_of(type));
      return buffer.view(type, rows, cols);
    }();
    if (data) gpu->copy(matrix(const_cast<void*>(data), type, rows, cols), there);
    return there;
  }
  std::vector<std::byte> from_gpu(const View& there) {
    std::vector<std::byte> bytes(there.bytes());
    gpu->copy(there, matrix(bytes.data(), there.dtype, there.rows, there.cols));
    gpu->wait();
    return bytes;
  }

  Communicator& host;
  std::unique_ptr<ops::Backend> gpu;
  cuda::Queue queue;
  std::string why;
  std::unique_ptr<PeerMemory> memory;
};

void run(int ranks, void (*body)(Member&)) {
  const Ending end = run_ranks(ranks, [&](World& world) {
    Member member(world);
    body(member);
  });
  EXPECT_EQ(end.code, 0) << ranks << " ranks: " << end.message;
  EXPECT_TRUE(end.none_left);
}

// On GPUs that nobody shares, and once on shared ones.
void run_all(void (*body)(Member&)) {
  for (int ranks : {2, 4, 8})
    if (ranks <= std::max(gpus, 4)) run(ranks, body);
}

// All shapes that a grid of 128 blocks treats differently, one after the other in the same memory.
void sums(Member& m) {
  int call = 0;
  for (const std::int64_t n : {4, 8, 1020, 1024, 1028, 4096, 131072, 131076, 700000})
    for (const bool two_rounds : {false, true}) {
      Buffer buffer;
      const View x = m.on_gpu(buffer, DType::f32, 1, n, values(n, m.host.rank(), ++call).data());
      cuda::peer_sum(m.queue.stream, m.memory->peers(), x, two_rounds);
      const auto got = m.from_gpu(x);
      const auto want = sum_of_all(n, m.host.ranks(), call);
      OSTRO_CHECK(std::memcmp(got.data(), want.data(), got.size()) == 0, n, " elements, call ",
                  call, ", two rounds ", two_rounds);
    }
}
TEST(PeerMemory, SumsInRankOrder) { run_all(sums); }

struct NormCase {
  std::int64_t rows, cols;
  DType weight, y;
};

// Bit for bit what the sum and the operation are one after the other.
void expect_sum_and_norm(Member& m, const NormCase& c, bool two_rounds, int call) {
  const std::int64_t n = c.rows * c.cols;
  const std::size_t weights = std::size_t(c.cols) * size_of(c.weight);
  const std::vector<float> residual = values(n, 100, call),
                           sum = sum_of_all(n, m.host.ranks(), call);
  std::vector<std::byte> weight(weights, std::byte{0x3c});  // about 0.01 in all three types
  Buffer b[6];
  const View x = m.on_gpu(b[0], DType::f32, c.rows, c.cols, values(n, m.host.rank(), call).data());
  const View s = m.on_gpu(b[1], DType::f32, c.rows, c.cols, sum.data());
  const View r0 = m.on_gpu(b[2], DType::f32, c.rows, c.cols, residual.data());
  const View r1 = m.on_gpu(b[3], DType::f32, c.rows, c.cols, residual.data());
  Buffer w;
  const View weight_there = m.on_gpu(w, c.weight, 1, c.cols, weight.data());
  const View y0 = m.on_gpu(b[4], c.y, c.rows, c.cols, nullptr);
  const View y1 = m.on_gpu(b[5], c.y, c.rows, c.cols, nullptr);
  cuda::peer_sum_norm(m.queue.stream, m.memory->peers(),
                      {.x = x, .residual = r0, .weight = weight_there, .y = y0, .eps = 1e-5f},
                      two_rounds);
  m.gpu->run(
      ops::AddRmsNorm{.x = s, .residual = r1, .weight = weight_there, .y = y1, .eps = 1e-5f});
  OSTRO_CHECK(m.from_gpu(r0) == m.from_gpu(r1), "residual of ", c.rows, " x ", c.cols, ", rounds ",
              1 + two_rounds);
  OSTRO_CHECK(m.from_gpu(y0) == m.from_gpu(y1), "y of ", c.rows, " x ", c.cols, ", rounds ",
              1 + two_rounds);
}

void sums_and_norms(Member& m) {
  int call = 0;
  for (const bool two_rounds : {false, true}) {
    for (const std::int64_t rows : {1, 2, 3, 128, 129, 300})
      expect_sum_and_norm(m, {rows, 4096, DType::bf16, DType::bf16}, two_rounds, ++call);
    for (const std::int64_t cols : {4, 1024, 1028, 4100, 6144})
      expect_sum_and_norm(m, {5, cols, DType::f16, DType::f16}, two_rounds, ++call);
    expect_sum_and_norm(m, {3, 4096, DType::f32, DType::f32}, two_rounds, ++call);
  }
}
TEST(PeerMemory, SumsAndNormalises) { run_all(sums_and_norms); }

// Without y: what a pipeline's stage does before it hands over.
void adds(Member& m) {
  constexpr std::int64_t kRows = 3, kCols = 256;
  const auto zero = std::vector<float>(kRows * kCols);
  Buffer b[2];
  const View x =
      m.on_gpu(b[0], DType::f32, kRows, kCols, values(kRows * kCols, m.host.rank(), 1).data());
  const View residual = m.on_gpu(b[1], DType::f32, kRows, kCols, zero.data());
  cuda::peer_sum_norm(m.queue.stream, m.memory->peers(),
                      {.x = x, .residual = residual, .weight = {}, .y = {}}, false);
  const auto got = m.from_gpu(residual);
  const auto want = sum_of_all(kRows * kCols, m.host.ranks(), 1);
  OSTRO_CHECK(std::memcmp(got.data(), want.data(), got.size()) == 0, "residual");
}
TEST(PeerMemory, SumsOntoTheResidualAlone) { run(2, adds); }

// A recorded step of several sums of different sizes, many times: the rounds go on between and
// within the replays.
void recorded(Member& m) {
  constexpr std::int64_t kSmall = 1024, kLarge = 200 * 1024;
  constexpr int kReplays = 20;
  const std::vector<float> ones(kLarge, 1.f);
  Buffer b[2];
  const View small = m.on_gpu(b[0], DType::f32, 1, kSmall, ones.data());
  const View large = m.on_gpu(b[1], DType::f32, 1, kLarge, ones.data());
  const auto step = [&] {
    cuda::peer_sum(m.queue.stream, m.memory->peers(), small, false);
    cuda::peer_sum(m.queue.stream, m.memory->peers(), large, true);
    cuda::peer_sum(m.queue.stream, m.memory->peers(), small, true);
  };
  m.gpu->wait();
  const auto recording = m.gpu->record(step);
  for (int i = 0; i < kReplays; ++i) OSTRO_CHECK(m.gpu->replay(*recording), "replay ", i);
  const auto all_are = [&](const View& there, float want) {
    const auto bytes = m.from_gpu(there);
    const auto* const got = reinterpret_cast<const float*>(bytes.data());
    return std::all_of(got, got + there.cols, [&](float x) { return x == want; });
  };
  const auto ranks = float(m.host.ranks());  // powers of two: exact
  OSTRO_CHECK(all_are(small, std::pow(ranks, 2 * kReplays)), "small");
  OSTRO_CHECK(all_are(large, std::pow(ranks, kReplays)), "large");
}
TEST(PeerMemory, GoesOnInRecordedSteps) { run(2, recorded); }

// A rank that does not come: the others wait until they are stopped.
void stops(Member& m) {
  Buffer b;
  const View x = m.on_gpu(b, DType::f32, 1, 4096, nullptr);
  m.gpu->wait();
  if (m.host.rank() == 0) {
    cuda::peer_sum(m.queue.stream, m.memory->peers(), x, false);
    ::usleep(100'000);
    OSTRO_CHECK(cudaStreamQuery(m.queue.stream) == cudaErrorNotReady, "the sum of one rank ended");
    m.memory->stop();
    cuda::peer_sum(m.queue.stream, m.memory->peers(), x, false);
    m.gpu->wait();
  }
}
TEST(PeerMemory, StopsAKernelThatWaits) { run(2, stops); }

}  // namespace
}  // namespace ostro::comm::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  using namespace ostro;
  comm::testing::gpus = comm::testing::count_gpus();
  if (comm::testing::gpus < 1) {
    std::printf("skipped: there is no GPU\n");
    return 77;
  }
  return RUN_ALL_TESTS();
}
