// The CUDA backend beyond its ops: memory, copies, placing weights, refusals, repeatability.
#include "backends/cuda/backend.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "ops/testing.h"

namespace ostro::cuda {
namespace {

using ops::testing::Matrix;

TEST(CudaBackend, GivesZeroedMemory) {
  const auto gpu = make_backend();
  for (std::size_t bytes : {std::size_t{1}, std::size_t{1000}, std::size_t{3} << 20}) {
    const Buffer buffer = gpu->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
    std::vector<char> host(bytes, 1);
    gpu->copy(buffer.view(DType::u8, 1, std::int64_t(bytes)),
              matrix(host.data(), DType::u8, 1, std::int64_t(bytes)));
    gpu->wait();
    EXPECT_EQ(host, std::vector<char>(bytes, 0));
  }
  EXPECT_EQ(gpu->allocate(0).data(), nullptr);
}

TEST(CudaBackend, RefusesMoreMemoryThanThereIs) {
  const auto gpu = make_backend();
  const std::size_t bytes = gpu->free_memory_bytes() + (std::size_t{1} << 40);
  ops::testing::expect_error<DeviceError>([&] { gpu->allocate(bytes); },
                                          text("no ", bytes, " bytes of device memory"));
  EXPECT_NE(gpu->allocate(64).data(), nullptr);  // the backend goes on
}

TEST(CudaBackend, RefusesADeviceThatIsNotThere) {
  ops::testing::expect_error<Unsupported>([] { make_backend(99); }, "there is no GPU 99");
  ops::testing::expect_error<Unsupported>([] { make_backend(-1); }, "there is no GPU -1");
}

// Larger than the ring of pinned slots; the source changes as soon as the call has returned.
TEST(CudaBackend, CopiesMayReuseTheirSource) {
  const auto gpu = make_backend();
  const std::int64_t n = (std::int64_t{50} << 20) / 4 + 7;
  std::vector<std::int32_t> source(std::size_t(n), 0), back(std::size_t(n), 0);
  std::iota(source.begin(), source.end(), 1);
  const Buffer buffer = gpu->allocate(std::size_t(n) * 4);
  const View device = buffer.view(DType::i32, 1, n);
  gpu->copy(matrix(source.data(), DType::i32, 1, n), device);
  std::fill(source.begin(), source.end(), -1);
  gpu->copy(device, matrix(back.data(), DType::i32, 1, n));
  gpu->wait();
  for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(back[std::size_t(i)], std::int32_t(i + 1));
}

TEST(CudaBackend, PlacesRowsOfAnyStrideAtSixteenBytes) {
  const auto gpu = make_backend();
  for (DType dtype : ops::testing::kFloats)
    for (std::int64_t cols : {1, 7, 8, 33, 4096, 3000000})
      for (std::int64_t pad : {0, 1, 5}) {
        Matrix w = Matrix(dtype, 3, cols, pad).random(1);
        const quant::Weight placed = gpu->place(w.weight());
        EXPECT_EQ(placed.data.device, Device::cuda);
        EXPECT_EQ(std::size_t(placed.data.row_stride) * size_of(dtype) % 16, 0u);
        for (std::int64_t r = 0; r < 3; ++r) {
          Matrix row(dtype, 1, cols);
          gpu->copy(placed.data.rows_of({r, r + 1}), row.view());
          gpu->wait();
          ASSERT_EQ(row.row_bits(0) == w.row_bits(r), true) << r << " of " << cols << ' ' << pad;
        }
      }
}

TEST(CudaBackend, RefusesMemoryOfTheHost) {
  const auto gpu = make_backend();
  Matrix x = Matrix(DType::f32, 1, 8).random(1), y(DType::f32, 1, 8);
  Matrix rows = Matrix(DType::i32, 1, 1).integers({0});
  ops::testing::expect_error<InvalidArgument>(
      [&] { gpu->run(ops::GatherRows{.x = x.view(), .rows = rows.view(), .y = y.view()}); },
      "f32 [1,8] is not in device memory");
}

// A host matrix on the device.
struct OnDevice {
  Buffer memory;
  View view;
  OnDevice(ops::Backend& gpu, Matrix& host)
      : memory(gpu.allocate(host.view().bytes())),
        view(memory.view(host.dtype(), host.rows(), host.cols())) {
    gpu.copy(host.view(), view);
  }
};

Matrix on_host(ops::Backend& gpu, const View& device) {
  Matrix host(device.dtype, device.rows, device.cols);
  gpu.copy(device, host.view());
  gpu.wait();
  return host;
}

void expect_same(const Matrix& got, const Matrix& want) {
  for (std::int64_t r = 0; r < want.rows(); ++r) ASSERT_EQ(got.row_bits(r), want.row_bits(r)) << r;
}

// Rows of packs, none, and longer than the registers hold.
TEST(CudaBackend, NormsRoundForProductsAsTheseDo) {
  const auto gpu = make_backend();
  for (DType type : {DType::bf16, DType::f32})
    for (std::int64_t hidden : {4096, 33, 8320})
      for (std::int64_t tokens : {1, 5}) {
        SCOPED_TRACE(text(name(type), " hidden ", hidden, " tokens ", tokens));
        ops::testing::TestWeight w(DType::f8e4m3, 40, hidden, 0, 1, 1);
        const quant::Weight placed = gpu->place(w.weight());
        Matrix scale = Matrix(type, 1, hidden).random(2), other(type, tokens, hidden);
        Matrix residual = Matrix(DType::f32, tokens, hidden).random(3, 7),
               out(DType::f32, tokens, 40);
        other.random(4);
        const OnDevice weight(*gpu, scale), rows(*gpu, residual), h(*gpu, other), y(*gpu, out);
        const auto norm = [&](ops::Activations activations) {
          gpu->run(ops::AddRmsNorm{.x = {},
                                   .residual = rows.view,
                                   .weight = weight.view,
                                   .y = h.view,
                                   .eps = 1e-5f,
                                   .activations = activations});
        };
        const auto product = [&](Range of) {
          gpu->run(ops::Linear{.x = h.view.rows_of(of),
                               .w = placed,
                               .y = y.view.rows_of(of),
                               .activations = ops::Activations::e4m3_per_token});
          return on_host(*gpu, y.view.rows_of(of));
        };
        norm(ops::Activations::as_is);
        const Matrix want = product({0, tokens});
        gpu->copy(other.view(), h.view);
        const Matrix want_other = product({0, tokens});
        norm(ops::Activations::e4m3_per_token);
        expect_same(product({0, tokens}), want);
        expect_same(product({0, tokens}), want);
        // Other rows than the norm's, other contents than the norm's.
        norm(ops::Activations::e4m3_per_token);
        expect_same(product({tokens - 1, tokens}), [&] {
          Matrix last(DType::f32, 1, 40);
          for (std::int64_t i = 0; i < 40; ++i) last.set(0, i, want(tokens - 1, i));
          return last;
        }());
        norm(ops::Activations::e4m3_per_token);
        gpu->copy(other.view(), h.view);
        expect_same(product({0, tokens}), want_other);
      }
}

}  // namespace
}  // namespace ostro::cuda
