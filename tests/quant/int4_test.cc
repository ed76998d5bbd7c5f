#include "quant/int4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace ostro::quant {
namespace {

using Group = std::vector<float>;

struct Rounded {
  float scale;
  Group x;
};

Rounded rounded(const Group& x) {
  const bf16 scale = int4_scale(x.data());
  std::vector<std::uint8_t> bytes(std::size_t(kInt4GroupBytes), std::uint8_t{0xff});
  int4_encode(x.data(), scale, bytes.data());
  Rounded r{to_float(scale), Group(std::size_t(kInt4Group), 0.0f)};
  int4_decode(bytes.data(), scale, r.x.data());
  return r;
}

// A simple reference, in doubles: the nearest of the sixteen numbers there are.
double nearest(double x, double scale) {
  double best = 0;
  for (int q = -8; q <= 7; ++q)
    if (std::abs(q * scale - x) < std::abs(best * scale - x)) best = q;
  return best * scale;
}

Group waves(float amax) {
  Group x;
  for (int i = 0; i < kInt4Group; ++i) x.push_back(0.9f * amax * float(std::sin(i * 0.83 + 0.1)));
  return x;
}

TEST(Int4, IsTheNearestOfSixteenNumbers) {
  for (float amax : {1e-20f, 2e-5f, 0.02f, 1.0f, 3e4f, 1e30f})
    for (float sign : {1.0f, -1.0f}) {
      Group x = waves(amax);
      x[77] = sign * amax;
      const Rounded got = rounded(x);
      EXPECT_NEAR(got.scale, -sign * amax / 8, amax / 8 * 0x1p-8);
      EXPECT_EQ(got.x[77], -8 * got.scale);
      for (std::size_t i = 0; i < x.size(); ++i)
        ASSERT_NEAR(std::abs(double(got.x[i]) - x[i]), std::abs(nearest(x[i], got.scale) - x[i]),
                    1e-6 * amax)
            << amax << ' ' << i;
    }
}

// The largest is exact but for the scale's rounding; what has its sign reversed may lack a unit.
TEST(Int4, ErrorIsHalfAUnitButAtTheOtherEnd) {
  Group x = waves(1);
  x[3] = -1;
  x[4] = 1;
  const Rounded got = rounded(x);
  EXPECT_EQ(got.scale, 0.125f);
  EXPECT_EQ(got.x[3], -1);
  EXPECT_EQ(got.x[4], 0.875f);
  for (std::size_t i = 5; i < x.size(); ++i) EXPECT_LE(std::abs(got.x[i] - x[i]), 0.0626f) << i;
}

TEST(Int4, OfZerosAndOneHugeValue) {
  for (const float v : rounded(Group(std::size_t(kInt4Group), 0.0f)).x) EXPECT_EQ(v, 0);
  Group x(std::size_t(kInt4Group), 1.0f);
  x[50] = 1000;
  const Group got = rounded(x).x;
  EXPECT_NEAR(got[50], 1000, 1000 * 0x1p-8);
  EXPECT_EQ(got[0], 0);
}

TEST(Int4, EveryColumnHasANibbleOfItsOwn) {
  std::set<std::pair<std::int64_t, int>> places;
  for (std::int64_t c = 0; c < kInt4Group; ++c) {
    EXPECT_TRUE(0 <= int4_byte(c) && int4_byte(c) < kInt4GroupBytes) << c;
    places.insert({int4_byte(c), int4_shift(c)});
  }
  EXPECT_EQ(std::int64_t(places.size()), kInt4Group);
}

// docs/engine_format.md: lane t of four has columns 2 t and 2 t + 1 of every eight, as pairs of
// nibbles 16 bits apart.
TEST(Int4, PairsOfColumnsLieSixteenBitsApart) {
  for (std::int64_t c = 0; c < kInt4Group; c += 2) {
    EXPECT_EQ(int4_byte(c) / 16, c % 8 / 2) << c;
    EXPECT_EQ(int4_byte(c + 1), int4_byte(c) + 2) << c;
    EXPECT_EQ(int4_shift(c + 1), int4_shift(c)) << c;
  }
  EXPECT_EQ(int4_byte(8), 1);
  EXPECT_EQ(int4_shift(16), 4);
  EXPECT_EQ(int4_byte(32), 4);
}

}  // namespace
}  // namespace ostro::quant
