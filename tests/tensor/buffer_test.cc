#include "tensor/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

namespace ostro {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

int frees = 0;
std::size_t freed_bytes = 0;

Buffer counted(std::size_t bytes) {
  frees = 0;
  return {new char[bytes], bytes, Device::cuda, [](void* data, std::size_t size) {
            ++frees;
            freed_bytes = size;
            delete[] static_cast<char*>(data);
          }};
}

TEST(Buffer, FreesItsMemoryOnce) {
  {
    Buffer a = counted(10);
    Buffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);
    EXPECT_EQ(a.bytes(), 0u);
    EXPECT_EQ(b.bytes(), 10u);
    EXPECT_EQ(frees, 0);
  }
  EXPECT_EQ(frees, 1);
  EXPECT_EQ(freed_bytes, 10u);
}

TEST(Buffer, MoveAssignmentLeavesNothingBehind) {
  {
    Buffer a = counted(10);
    a = Buffer();
    EXPECT_EQ(a.data(), nullptr);
    EXPECT_EQ(frees, 1);
  }
  EXPECT_EQ(frees, 1);
}

TEST(Buffer, ViewIsAContiguousMatrixThatFits) {
  const Buffer buffer = counted(64);
  const View v = buffer.view(DType::bf16, 3, 5, 34);
  EXPECT_EQ(v.data, static_cast<char*>(buffer.data()) + 34);
  EXPECT_EQ(v.dtype, DType::bf16);
  EXPECT_EQ(v.device, Device::cuda);
  EXPECT_EQ(v.rows, 3);
  EXPECT_EQ(v.cols, 5);
  EXPECT_EQ(v.row_stride, 5);
  try {
    buffer.view(DType::bf16, 3, 5, 36);
    FAIL();
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("bf16 [3,5] at byte 36 of 64"), std::string::npos)
        << e.what();
  }
}

TEST(AllocateHost, IsZeroAlignedAndWritableToTheLastByte) {
  for (std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{4097}, kHugePage - 1,
                            kHugePage, kHugePage + 1, 3 * kHugePage}) {
    SCOPED_TRACE(text("bytes ", bytes));
    const Buffer buffer = allocate_host(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 4096;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % alignment, 0u);
    char* data = static_cast<char*>(buffer.data());
    EXPECT_TRUE(std::all_of(data, data + bytes, [](char c) { return c == 0; }));
    std::fill(data, data + bytes, 'x');
  }
}

TEST(AllocateHost, OfNothingHasNoMemory) {
  EXPECT_EQ(allocate_host(0).data(), nullptr);
  EXPECT_EQ(allocate_host(0).bytes(), 0u);
}

// Address space is finite: a leak of 64 GiB each time would end after 2048 rounds.
TEST(AllocateHost, GivesAddressSpaceBack) {
  for (int i = 0; i < 5000; ++i) allocate_host(std::size_t{64} << 30);
}

TEST(AllocateHost, SaysHowMuchThereIsNot) {
  try {
    allocate_host(std::size_t{1} << 62);
    FAIL();
  } catch (const DeviceError& e) {
    EXPECT_STREQ(e.what(),
                 "no 4611686018427387904 bytes of host memory: Cannot allocate memory (errno 12)");
  }
}

}  // namespace
}  // namespace ostro
