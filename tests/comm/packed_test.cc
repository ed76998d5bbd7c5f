#include "comm/packed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace ostro::comm {
namespace {

// 4 x 5 elements of two bytes in rows of 7.
struct Strided {
  std::vector<std::uint16_t> memory = std::vector<std::uint16_t>(28, 0xffff);
  View view{memory.data(), DType::bf16, Device::cpu, 4, 5, 7};

  static Strided counting() {
    Strided s;
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 5; ++c) s.memory[r * 7 + c] = static_cast<std::uint16_t>(r * 5 + c);
    return s;
  }
};

TEST(Packed, EveryPieceOfEveryLengthComesBack) {
  const Strided from = Strided::counting();
  std::vector<std::uint16_t> want(20);
  for (int i = 0; i < 20; ++i) want[i] = static_cast<std::uint16_t>(i);
  for (std::size_t length = 1; length <= 41; ++length) {
    std::vector<std::uint16_t> packed(20);
    Strided to;
    for (std::size_t begin = 0; begin < 40; begin += length) {
      const std::size_t bytes = std::min(length, 40 - begin);
      std::byte* piece = reinterpret_cast<std::byte*>(packed.data()) + begin;
      pack(from.view, begin, bytes, piece);
      unpack(piece, begin, bytes, to.view);
    }
    EXPECT_EQ(packed, want) << length;
    EXPECT_EQ(to.memory, from.memory) << length;  // the gaps keep 0xffff
  }
}

TEST(Packed, OutsideIsABug) {
  const Strided from = Strided::counting();
  std::byte to[64];
  EXPECT_THROW(pack(from.view, 39, 2, to), InternalError);
  pack(from.view, 40, 0, to);
}

TEST(Packed, CopiesBetweenStridesAndOntoItself) {
  const Strided from = Strided::counting();
  Strided to;
  copy(from.view, to.view);
  EXPECT_EQ(to.memory, from.memory);
  copy(to.view, to.view);
  EXPECT_EQ(to.memory, from.memory);
}

}  // namespace
}  // namespace ostro::comm
