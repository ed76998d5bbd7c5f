#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ostro::model {
namespace {

// The numbers below were computed with 40 digits from the formulas of the papers and of Hugging
// Face's modeling_rope_utils, not by this program.

ModelConfig config_of(double theta, std::int64_t head_dim, RopeScaling scaling = {}) {
  ModelConfig c;
  c.rope_theta = theta;
  c.head_dim = head_dim;
  c.rope_scaling = scaling;
  return c;
}

RopeScaling linear(double factor) {
  return {.type = RopeScaling::Type::linear, .factor = factor, .original_context = 32};
}

RopeScaling dynamic(double factor, std::int64_t context) {
  return {.type = RopeScaling::Type::dynamic, .factor = factor, .original_context = context};
}

RopeScaling llama3(std::int64_t context) {
  return {.type = RopeScaling::Type::llama3,
          .factor = 8,
          .low_freq_factor = 1,
          .high_freq_factor = 4,
          .original_context = context};
}

// Frequencies are computed in f64 and rounded once: half a unit in the last place, and the nine
// digits that are written here.
void expect_frequencies(const std::vector<float>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(got[i], want[i], want[i] * 6.1e-8) << "frequency " << i;
}

TEST(Rope, PlainFrequenciesArePowersOfTheBase) {
  expect_frequencies(inverse_frequencies(config_of(1e4, 8), 100), {1, 0.1, 0.01, 0.001});
  expect_frequencies(inverse_frequencies(config_of(1e6, 16), 100),
                     {1, 0.177827941, 0.0316227766, 0.00562341325, 0.001, 0.000177827941,
                      3.16227766e-05, 5.62341325e-06});
}

TEST(Rope, PlainAndLinearAndLlama3DoNotDependOnTheLength) {
  for (const RopeScaling& scaling : {RopeScaling{}, linear(4), llama3(32)})
    EXPECT_EQ(inverse_frequencies(config_of(1e4, 64, scaling), 1),
              inverse_frequencies(config_of(1e4, 64, scaling), 1'000'000));
}

TEST(Rope, LinearDividesEveryFrequency) {
  expect_frequencies(inverse_frequencies(config_of(1e4, 8, linear(4)), 100),
                     {0.25, 0.025, 0.0025, 0.00025});
}

TEST(Rope, DynamicInsideTheOriginalContextIsPlain) {
  const auto plain = inverse_frequencies(config_of(1e4, 16), 0);
  for (std::int64_t tokens : {0, 1, 31, 32})
    EXPECT_EQ(inverse_frequencies(config_of(1e4, 16, dynamic(2, 32)), tokens), plain) << tokens;
}

TEST(Rope, DynamicBeyondTheOriginalContextRaisesTheBase) {
  expect_frequencies(inverse_frequencies(config_of(1e4, 8, dynamic(2, 32)), 64),
                     {1, 0.0693361274, 0.00480749857, 0.000333333333});
  expect_frequencies(inverse_frequencies(config_of(1e4, 8, dynamic(2, 32)), 33),
                     {1, 0.097999461, 0.00960389436, 0.000941176471});
  expect_frequencies(inverse_frequencies(config_of(1e4, 16, dynamic(2, 32)), 44),
                     {1, 0.291931043, 0.0852237338, 0.0248794535, 0.0072630848, 0.00212031992,
                      0.000618987206, 0.000180701581});
}

TEST(Rope, Llama3HasThreeBands) {
  // Llama 3.1: 64 frequencies, of which 0-28 stay, 29-34 are mixed, 35-63 are divided by 8.
  const auto got = inverse_frequencies(config_of(500000, 128, llama3(8192)), 1);
  const auto plain = inverse_frequencies(config_of(500000, 128), 1);
  ASSERT_EQ(got.size(), 64u);
  for (std::size_t i = 0; i < 64; ++i) {
    if (i <= 28) {
      EXPECT_EQ(got[i], plain[i]) << i;
    } else if (i >= 35) {
      EXPECT_NEAR(got[i], plain[i] / 8, plain[i] / 8 * 1.2e-7) << i;
    } else {
      EXPECT_GT(got[i], plain[i] / 8) << i;
      EXPECT_LT(got[i], plain[i]) << i;
    }
  }
  const std::vector<std::pair<std::size_t, double>> some = {
      {1, 0.814617234},     {20, 0.0165604401},   {28, 0.00321144599},  {29, 0.00216657076},
      {30, 0.00137189357},  {32, 0.000524846161}, {34, 0.000178507813}, {35, 9.55621235e-05},
      {36, 7.78465527e-05}, {40, 3.4281022e-05},  {63, 3.06892599e-07}};
  for (const auto& [i, want] : some) EXPECT_NEAR(got[i], want, want * 6.5e-8) << "frequency " << i;
}

TEST(Rope, Llama3WithAShortOriginalContext) {
  expect_frequencies(inverse_frequencies(config_of(200, 16, llama3(32)), 1),
                     {1, 0.309057226, 0.0607177711, 0.017140511, 0.00883883476, 0.00455791546,
                      0.00235037693, 0.00121201715});
}

}  // namespace
}  // namespace ostro::model
