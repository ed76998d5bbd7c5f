#include "comm/collectives.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace ostro::comm::testing {
namespace {

// Around nothing, around the step from one round to two (32 KiB), and around pieces of 1 MiB.
constexpr std::int64_t kSizes[] = {0,    1,    2,     3,      7,      97,     8191,
                                   8192, 8193, 65521, 262144, 262147, 1000003};

// Rank `rank`'s numbers, which every other rank can make as well. Their magnitudes differ by 2^20,
// so that another order of summing gives other bits.
std::vector<float> numbers(int rank, std::int64_t n, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed * 1000 + rank));
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x)
    value = std::ldexp(static_cast<float>(random() % 20001) - 10000.0f, int(random() % 20) - 10);
  return x;
}

std::vector<float> sum_of_all(int ranks, std::int64_t n, int seed) {
  std::vector<float> sum = numbers(0, n, seed);
  for (int q = 1; q < ranks; ++q) {
    const std::vector<float> x = numbers(q, n, seed);
    for (std::size_t i = 0; i < x.size(); ++i) sum[i] += x[i];
  }
  return sum;
}

View row_of(std::vector<float>& x) {
  return matrix(x.data(), DType::f32, 1, static_cast<std::int64_t>(x.size()));
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want,
                      const std::string& what) {
  for (std::size_t i = 0; i < want.size(); ++i)
    OSTRO_CHECK(std::bit_cast<std::uint32_t>(got[i]) == std::bit_cast<std::uint32_t>(want[i]), what,
                ": element ", i, " of ", want.size(), " is ", got[i], ", not ", want[i]);
}

void expect_sum(Communicator& group, std::int64_t n, int seed) {
  std::vector<float> x = numbers(group.rank(), n, seed);
  group.all_reduce_sum(row_of(x));
  expect_same_bits(x, sum_of_all(group.ranks(), n, seed), "all_reduce_sum");
}

// Element (row, column) of the matrix that is gathered, as bytes.
std::byte element_byte(std::int64_t row, std::int64_t column, std::size_t byte) {
  return static_cast<std::byte>((row * 131 + column * 7 + std::int64_t(byte) * 3 + 1) & 0xff);
}

void fill(const View& v, std::int64_t first_column) {
  const std::size_t size = size_of(v.dtype);
  for (std::int64_t r = 0; r < v.rows; ++r)
    for (std::int64_t c = 0; c < v.cols; ++c)
      for (std::size_t b = 0; b < size; ++b)
        static_cast<std::byte*>(v.data)[std::size_t(r * v.row_stride + c) * size + b] =
            element_byte(r, first_column + c, b);
}

void expect_filled(const View& v, const char* what) {
  const std::size_t size = size_of(v.dtype);
  for (std::int64_t r = 0; r < v.rows; ++r)
    for (std::int64_t c = 0; c < v.cols; ++c)
      for (std::size_t b = 0; b < size; ++b)
        OSTRO_CHECK(static_cast<std::byte*>(v.data)[std::size_t(r * v.row_stride + c) * size + b] ==
                        element_byte(r, c, b),
                    what, " of ", describe(v), ": element ", r, ',', c, " is wrong");
}

void gather(Communicator& world, DType dtype, std::int64_t rows, std::int64_t cols) {
  const Range own = part_of(cols, world.rank(), world.ranks());
  std::vector<std::byte> memory(std::size_t(rows * cols) * size_of(dtype) + 1);
  const View whole = matrix(memory.data(), dtype, rows, cols);

  // From columns in the middle of a wider matrix ...
  std::vector<std::byte> wide_memory(std::size_t(rows * (own.size() + 5)) * size_of(dtype) + 1);
  const View wide = matrix(wide_memory.data(), dtype, rows, own.size() + 5);
  const View part = wide.cols_of({2, 2 + own.size()});
  fill(part, own.begin);
  world.all_gather_columns(part, whole);
  expect_filled(whole, "all_gather_columns");

  // ... and from their own place.
  std::fill(memory.begin(), memory.end(), std::byte{0});
  fill(whole.cols_of(own), own.begin);
  world.all_gather_columns(whole.cols_of(own), whole);
  expect_filled(whole, "all_gather_columns in place");
}

std::vector<std::uint8_t> message(int from, int to, std::size_t bytes) {
  std::vector<std::uint8_t> m(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    m[i] = static_cast<std::uint8_t>(i * 11 + i / 255 + std::size_t(from * 17 + to * 5));
  return m;
}

View bytes_of(std::vector<std::uint8_t>& m) {
  return matrix(m.data(), DType::u8, 1, static_cast<std::int64_t>(m.size()));
}

void send_to(Communicator& group, int to, std::size_t bytes) {
  std::vector<std::uint8_t> m = message(group.rank(), to, bytes);
  group.send(bytes_of(m), to);
}

void receive_from(Communicator& group, int from, std::size_t bytes) {
  std::vector<std::uint8_t> m(bytes);
  group.receive(bytes_of(m), from);
  OSTRO_CHECK(m == message(from, group.rank(), bytes), bytes, " bytes from rank ", from,
              " to rank ", group.rank(), " have changed on the way");
}

}  // namespace

void sums_in_rank_order(Communicator& world) {
  int seed = 0;
  for (const std::int64_t n : kSizes) expect_sum(world, n, ++seed);
  for (int i = 0; i < 200; ++i) expect_sum(world, i % 5, ++seed);
}

void sums_a_row_alike_in_any_matrix(Communicator& world) {
  constexpr std::int64_t kCols = 1009;
  constexpr std::int64_t kRows = 300;  // two rounds and several pieces; one row takes one round
  std::vector<float> all = numbers(world.rank(), kRows * kCols, 1);
  std::vector<float> row(all.begin() + 17 * kCols, all.begin() + 18 * kCols);
  world.all_reduce_sum(matrix(all.data(), DType::f32, kRows, kCols));
  world.all_reduce_sum(row_of(row));
  expect_same_bits({all.begin() + 17 * kCols, all.begin() + 18 * kCols}, row, "row 17 of 300");
}

void gathers_columns(Communicator& world) {
  for (const DType dtype : {DType::u8, DType::bf16, DType::f32})
    for (const std::int64_t rows : {0, 1, 3, 17})
      for (const std::int64_t cols : {0, 1, 2, 5, 96, 1009}) gather(world, dtype, rows, cols);
  gather(world, DType::f32, 301, 2003);
  gather(world, DType::bf16, 1, 1500001);
}

void passes_messages_around(Communicator& world) {
  const int n = world.ranks();
  const int next = (world.rank() + 1) % n;
  const int previous = (world.rank() + n - 1) % n;
  if (n == 1) return;
  for (const std::size_t bytes : {0u, 1u, 7u, 4096u, (1u << 20) - 8, 1u << 20, (5u << 20) + 3}) {
    // Rank 0 begins, so that no rank sends before the next is ready to receive.
    if (world.rank() == 0) send_to(world, next, bytes);
    receive_from(world, previous, bytes);
    if (world.rank() != 0) send_to(world, next, bytes);
  }
  // Many small ones, with a receiver that comes later.
  if (world.rank() == 0)
    for (std::size_t i = 0; i < 1000; ++i) send_to(world, 1, i % 37);
  if (world.rank() == 1)
    for (std::size_t i = 0; i < 1000; ++i) receive_from(world, 0, i % 37);
}

// Everyone sends before anyone receives, and overwrites what was sent at once.
void goes_on_after_buffered_sends(Communicator& world) {
  const int n = world.ranks();
  if (n == 1) return;
  const int next = (world.rank() + 1) % n;
  const int previous = (world.rank() + n - 1) % n;
  for (const std::size_t bytes : {1u, 4096u, (2u << 20) + 3}) {
    const auto group = world.split(0, world.rank());
    group->buffer_sends(next, 3 * bytes);
    for (std::size_t round = 0; round < 7; ++round) {
      const std::size_t size = bytes - round % 2 * (bytes / 3);
      for (int i = 0; i < 3; ++i) {
        std::vector<std::uint8_t> m = message(group->rank(), next, size);
        group->send(bytes_of(m), next);
        std::ranges::fill(m, std::uint8_t{0xee});
        group->progress();
      }
      for (int i = 0; i < 3; ++i) receive_from(*group, previous, size);
    }
    // Larger than the buffer, to a receiver that is there.
    if (group->rank() == 0) send_to(*group, 1, 4 * bytes + 5000);
    if (group->rank() == 1) receive_from(*group, 0, 4 * bytes + 5000);
    group->barrier();
  }
}

void waits_for_a_message(Communicator& world) {
  if (world.ranks() == 1) return;
  world.barrier();
  const Stopwatch watch;
  if (world.rank() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    send_to(world, 1, 77);
  } else if (world.rank() == 1) {
    world.wait_for_message(0);
    OSTRO_CHECK(watch.seconds() > 0.3, "a message that comes after 0.4 s is there after ",
                watch.seconds(), " s");
    world.wait_for_message(0);  // until it is received
    receive_from(world, 0, 77);
  }
  world.barrier();
}

void broadcasts_from_every_root(Communicator& world) {
  for (const std::size_t bytes : {0u, 1u, 13u, 70000u, (3u << 20) + 1})
    for (int root = 0; root < world.ranks(); ++root) {
      std::vector<std::uint8_t> m(bytes);
      if (world.rank() == root) m = message(root, 0, bytes);
      world.broadcast(std::as_writable_bytes(std::span(m)), root);
      OSTRO_CHECK(m == message(root, 0, bytes), "broadcast of ", bytes, " bytes from ", root);
    }
  // A root that does not wait for anyone must not overtake the others.
  for (std::uint32_t i = 0; i < 500; ++i) {
    std::uint32_t value = world.rank() == 0 ? i : ~0u;
    world.broadcast(std::as_writable_bytes(std::span(&value, 1)), 0);
    OSTRO_CHECK(value == i, "broadcast ", i, " brings ", value);
  }
}

void holds_at_the_barrier(Communicator& world) {
  for (int late = 0; late < world.ranks(); ++late) {
    world.barrier();
    const Stopwatch watch;
    if (world.rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(60));
    world.barrier();
    // The late rank may leave the first barrier a little before this one.
    OSTRO_CHECK(watch.seconds() > 0.03, "rank ", world.rank(), " passed the barrier ",
                watch.seconds(), " s after the first, rank ", late, " came 0.06 s after it");
  }
}

void splits_into_groups(Communicator& world) {
  const int n = world.ranks();
  // Even and odd, in reverse order.
  const auto half = world.split(world.rank() % 2, -world.rank());
  const int size = (n + 1 - world.rank() % 2) / 2;
  OSTRO_CHECK(half->ranks() == size && half->rank() == size - 1 - world.rank() / 2, "rank ",
              world.rank(), " of ", n, " is ", half->rank(), " of ", half->ranks());
  expect_sum(*half, 1001, 5);

  // Equal keys keep the order; a group of the group; groups of one.
  const auto same = half->split(3, 0);
  OSTRO_CHECK(same->rank() == half->rank() && same->ranks() == half->ranks(), "rank ", same->rank(),
              " of ", same->ranks());
  expect_sum(*same, 77, 6);
  const auto alone = world.split(world.rank(), 0);
  OSTRO_CHECK(alone->ranks() == 1 && alone->rank() == 0, alone->rank(), " of ", alone->ranks());
  expect_sum(*alone, 77, 7);
}

void keeps_groups_apart(Communicator& world) {
  // As tensor parallel pairs inside pipeline stages: ranks 2s and 2s + 1 are stage s.
  if (world.ranks() % 2 != 0) return;
  const int stage = world.rank() / 2;
  const int stages = world.ranks() / 2;
  const auto tensor = world.split(stage, world.rank());
  const auto pipeline = world.split(world.rank() % 2, world.rank());
  OSTRO_CHECK(pipeline->rank() == stage && pipeline->ranks() == stages, pipeline->rank());
  for (int step = 0; step < 100; ++step) {
    std::uint32_t plan = world.rank() == 0 ? std::uint32_t(step) : 0;
    world.broadcast(std::as_writable_bytes(std::span(&plan, 1)), 0);
    OSTRO_CHECK(plan == std::uint32_t(step), "step ", step, " is given plan ", plan);
    const std::size_t bytes = std::size_t(step * step * 13);
    if (stage > 0) receive_from(*pipeline, stage - 1, bytes);
    expect_sum(*tensor, step * 211, step);
    expect_sum(*tensor, 64, step + 1);
    if (stage + 1 < stages) send_to(*pipeline, stage + 1, bytes);
  }
  world.barrier();
}

void check_collectives(Communicator& world) {
  sums_in_rank_order(world);
  sums_a_row_alike_in_any_matrix(world);
  gathers_columns(world);
  passes_messages_around(world);
  goes_on_after_buffered_sends(world);
  waits_for_a_message(world);
  broadcasts_from_every_root(world);
  holds_at_the_barrier(world);
  splits_into_groups(world);
  keeps_groups_apart(world);
}

}  // namespace ostro::comm::testing
