#include "builder/dummy.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ostro::builder {
namespace {

std::vector<float> values(const DummyWeights& w, std::string_view name, std::uint64_t first,
                          std::uint64_t n) {
  std::vector<float> v(n);
  w.fill(name, first, n, v.data());
  return v;
}

TEST(DummyWeights, AreNormalWithDeviation002) {
  const std::size_t n = 1 << 20;
  const auto v = values(DummyWeights(DType::f32, 1), "x", 0, n);
  double m1 = 0, m2 = 0, m4 = 0;
  std::size_t within_one = 0;
  for (const double x : v) {
    const double z = x / 0.02;
    m1 += z;
    m2 += z * z;
    m4 += z * z * z * z;
    within_one += std::abs(z) < 1;
  }
  // Six standard errors of each estimate, from n samples of N(0, 1).
  const double error = 6 / std::sqrt(double(n));
  EXPECT_NEAR(m1 / n, 0, error);
  EXPECT_NEAR(m2 / n, 1, error * std::sqrt(2.0));
  EXPECT_NEAR(m4 / n, 3, error * std::sqrt(96.0));
  EXPECT_NEAR(double(within_one) / n, 0.682689, error * 0.466);
}

TEST(DummyWeights, AnElementDependsOnItsPlaceAlone) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const DummyWeights w(dtype, 1);
    const std::size_t element = size_of(dtype);
    std::vector<std::byte> all(1000 * element), part(1000 * element);
    w.fill("x", 0, 1000, all.data());
    for (const std::uint64_t first : {0, 1, 2, 3, 4, 5, 501})
      for (const std::uint64_t n : {0, 1, 2, 3, 4, 5, 6, 7, 499}) {
        w.fill("x", first, n, part.data());
        EXPECT_TRUE(std::equal(part.begin(), part.begin() + std::ptrdiff_t(n * element),
                               all.begin() + std::ptrdiff_t(first * element)))
            << name(dtype) << ' ' << first << ' ' << n;
      }
  }
}

TEST(DummyWeights, TensorsAndSeedsDiffer) {
  const DummyWeights w(DType::f32, 1), other(DType::f32, 2);
  EXPECT_NE(values(w, "a", 0, 8), values(w, "b", 0, 8));
  EXPECT_NE(values(w, "a", 0, 8), values(other, "a", 0, 8));
  EXPECT_EQ(values(w, "a", 0, 8), values(DummyWeights(DType::f32, 1), "a", 0, 8));
}

}  // namespace
}  // namespace ostro::builder
