#include "quant/int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ostro::quant {
namespace {

struct Encoded {
  float scale;
  std::vector<std::int8_t> q;
};

Encoded encoded(const std::vector<float>& x) {
  const auto n = std::int64_t(x.size());
  Encoded e{int8_scale(x.data(), n), std::vector<std::int8_t>(x.size())};
  int8_encode(x.data(), n, e.scale, e.q.data());
  return e;
}

TEST(Int8, KeepsWithinHalfAUnitOfItsScale) {
  for (float amax : {1e-6f, 0.02f, 1.0f, 3e4f, 1e30f}) {
    std::vector<float> x;
    for (int i = 0; i < 500; ++i) x.push_back(amax * float(std::sin(i * 0.7)));
    x[200] = -amax;
    const Encoded e = encoded(x);
    EXPECT_FLOAT_EQ(e.scale, amax / 127);
    EXPECT_EQ(e.q[200], -127);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_LE(std::abs(double(e.q[i]) * e.scale - x[i]), 0.50001 * e.scale) << amax << ' ' << i;
  }
}

TEST(Int8, RoundsToNearestEven) {
  const Encoded e = encoded({127, 2.5f, 3.5f, -2.5f, 0.49f, -126.6f, 0});
  EXPECT_EQ(e.scale, 1);
  EXPECT_EQ(e.q, (std::vector<std::int8_t>{127, 2, 4, -2, 0, -127, 0}));
}

TEST(Int8, OfZeros) {
  const Encoded e = encoded({0, -0.0f, 0});
  EXPECT_GT(e.scale, 0);
  EXPECT_EQ(e.q, (std::vector<std::int8_t>{0, 0, 0}));
}

}  // namespace
}  // namespace ostro::quant
