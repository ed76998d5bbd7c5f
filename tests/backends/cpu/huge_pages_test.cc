#include "backends/cpu/huge_pages.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "base/file.h"
#include "base/temp_dir.h"

namespace ostro::cpu {
namespace {

constexpr std::size_t kBytes = std::size_t{9} << 20;

// A file of kBytes whose every 8 bytes differ.
class HugePagesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string bytes(kBytes, '\0');
    for (std::uint64_t i = 0; i < kBytes / 8; ++i) std::memcpy(bytes.data() + 8 * i, &i, sizeof i);
    write_bytes(dir_ / "weights", bytes);
    map_ = MappedFile(dir_ / "weights");
  }

  TempDir dir_;
  MappedFile map_;
};

TEST_F(HugePagesTest, TheCopyTakesThePlaceOfTheMap) {
  const std::byte* data = map_.bytes().data();
  HugePages pages;
  EXPECT_EQ(pages.find(data), data);
  // Two weights with a gap, out of order; the last page of the file belongs to none.
  const std::size_t half = 5 << 20, end = kBytes - 4096;
  pages.add(data + half, end - half);
  pages.add(data + 64, half - 128);
  pages.wait();
  ASSERT_GT(pages.copied_bytes(), 0u);
  for (const std::size_t at : {std::size_t{64}, std::size_t{4096}, half - 72, half, end - 8}) {
    const void* found = pages.find(data + at);
    EXPECT_NE(found, data + at) << at;
    EXPECT_EQ(std::memcmp(found, data + at, 8), 0) << at;
  }
  EXPECT_EQ(pages.find(data), data);
  EXPECT_EQ(pages.find(data + end), data + end);
  // A row is found beside its neighbours: kernels only look up a weight's first.
  EXPECT_EQ(static_cast<const char*>(pages.find(data + half + 100)),
            static_cast<const char*>(pages.find(data + half)) + 100);
}

TEST_F(HugePagesTest, OnlyFilesAreCopied) {
  const Buffer buffer = allocate_host(kBytes);
  HugePages pages;
  pages.add(buffer.data(), kBytes);
  pages.wait();
  EXPECT_EQ(pages.copied_bytes(), 0u);
  EXPECT_EQ(pages.find(buffer.data()), buffer.data());
}

TEST_F(HugePagesTest, StopsAtOnce) {
  HugePages pages;
  pages.add(map_.bytes().data(), kBytes);
}

}  // namespace
}  // namespace ostro::cpu
