#include "quant/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace ostro::quant {
namespace {

std::vector<float> rounded(std::vector<float> x, std::int64_t group) {
  e4m3_round(x.data(), std::int64_t(x.size()), group);
  return x;
}

// The largest of a group is kept but for two roundings of f32; all others are off by half a unit of
// e4m3: a 16th of the number, or a half of 2^-9 in units of the scale.
TEST(E4m3, KeepsWithinHalfAUnitOfItsScale) {
  for (float amax : {1e-6f, 0.02f, 1.0f, 448.0f, 3e4f, 1e30f}) {
    std::vector<float> x;
    for (int i = 0; i < 500; ++i)
      x.push_back(amax * std::exp(-0.03f * float(i)) * (i % 3 == 0 ? -1.0f : 1.0f));
    const std::vector<float> got = rounded(x, 500);
    EXPECT_NEAR(got[0], x[0], std::abs(x[0]) * 0x1p-23);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_LE(std::abs(double(got[i]) - x[i]),
                1.0001 * std::max(std::abs(x[i]) * 0x1p-4, double(e4m3_scale(amax)) * 0x1p-10))
          << amax << ' ' << i;
  }
}

TEST(E4m3, HasAScaleForEachGroup) {
  std::vector<float> x(300, 1.0f);
  x[0] = 1000;
  x[299] = 3e-4f;
  const std::vector<float> got = rounded(x, kE4m3Group);
  for (std::size_t i = 1; i < 128; ++i) EXPECT_NEAR(got[i], 1, 0.0625);
  for (std::size_t i = 128; i < 299; ++i) EXPECT_NEAR(got[i], 1, 0x1p-23) << i;
  EXPECT_NEAR(got[299], 3e-4f, 3e-4f / 16);
  x[100] = 5e-7f;  // below half of 2^-9 of its group's scale
  EXPECT_EQ(rounded(x, kE4m3Group)[100], 0);
}

TEST(E4m3, OfZerosAndNan) {
  EXPECT_EQ(rounded({0, -0.0f, 0}, 3), (std::vector<float>{0, -0.0f, 0}));
  EXPECT_EQ(e4m3_amax(nullptr, 0), kE4m3LeastAmax);
  const std::vector<float> got = rounded({1, std::nanf(""), 2}, 3);
  EXPECT_NEAR(got[0], 1, 0x1p-23);
  EXPECT_TRUE(std::isnan(got[1]));
  EXPECT_NEAR(got[2], 2, 0x1p-22);
}

TEST(E4m3, EncodesWhatRoundDecodes) {
  std::vector<float> x;
  for (int i = 0; i < 333; ++i) x.push_back(std::sin(float(i)) * 0.07f);
  const auto n = std::int64_t(x.size());
  const float amax = e4m3_amax(x.data(), n);
  std::vector<f8e4m3> q(x.size());
  e4m3_encode(x.data(), n, e4m3_factor(amax), q.data());
  const std::vector<float> got = rounded(x, n);
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_EQ(to_float(q[i]) * e4m3_scale(amax), got[i]) << i;
}

double squared_error_at(const std::vector<float>& x, float most) {
  std::vector<f8e4m3> q(x.size());
  e4m3_encode(x.data(), std::int64_t(x.size()), e4m3_factor(most), q.data());
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double error = double(to_float(q[i])) * e4m3_scale(most) - x[i];
    sum += error * error;
  }
  return sum;
}

// Of rows of every size the scale with the least error; the scale of amax is 7 % worse on average.
TEST(E4m3, FitsTheScaleOfARow) {
  double fitted = 0, plain = 0;
  for (int row = 0; row < 200; ++row) {
    std::vector<float> x(256);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = 0.02f * std::sin(float(i * i + std::size_t(row) * 77)) *
             std::exp(std::sin(float(3 * i) + float(row)));
    const auto n = std::int64_t(x.size());
    const float amax = e4m3_amax(x.data(), n), most = e4m3_fitted_amax(x.data(), n);
    const double error = squared_error_at(x, most);
    for (int t = 0; t < 8; ++t)
      ASSERT_LE(error, squared_error_at(x, amax * (1 + float(t) / 8)) * (1 + 1e-4)) << row;
    fitted += error / amax / amax;
    plain += squared_error_at(x, amax) / amax / amax;
  }
  EXPECT_LT(fitted, 0.93 * plain);
}

TEST(E4m3, FitsExtremes) {
  EXPECT_EQ(e4m3_fitted_amax(nullptr, 0), kE4m3LeastAmax);
  for (float x : {0.0f, 1.0f, 3.4e38f}) {
    const std::vector<float> row(5, x);
    const float most = e4m3_fitted_amax(row.data(), 5);
    EXPECT_EQ(most, std::max(x, kE4m3LeastAmax));  // the largest magnitude is kept
  }
  // Columns that fit exactly: 448, 1 and 2^-6 with the scale of amax.
  const std::vector<float> exact = {448, 1, 0x1p-6f, 13};
  EXPECT_EQ(e4m3_fitted_amax(exact.data(), 4), 448);
}

}  // namespace
}  // namespace ostro::quant
