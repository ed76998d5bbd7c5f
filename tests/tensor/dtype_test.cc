#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace ostro {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The value of a format with `exponent_bits` and `mantissa_bits` (IEEE 754, section 3.4), from its
// definition.
double decoded(unsigned bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = int(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = int(bits) & ((1 << mantissa_bits) - 1);
  const double sign = bits >> (exponent_bits + mantissa_bits) ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::nan("") : sign * double(kInfinity);
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

struct Half {
  using Type = f16;
  static constexpr int kExponentBits = 5, kMantissaBits = 10;
};
struct Brain {
  using Type = bf16;
  static constexpr int kExponentBits = 8, kMantissaBits = 7;
};

template <class Format>
class Rounding : public ::testing::Test {
 protected:
  using T = typename Format::Type;
  static T of_bits(unsigned bits) { return {std::uint16_t(bits)}; }
  static unsigned rounded(float x) { return from_float<T>(x).bits; }
  static constexpr unsigned kInfinityBits = ((1u << Format::kExponentBits) - 1)
                                            << Format::kMantissaBits;
};
using Formats = ::testing::Types<Half, Brain>;
TYPED_TEST_SUITE(Rounding, Formats);

TYPED_TEST(Rounding, EveryValueIsWidenedExactlyAndComesBack) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float wide = to_float(this->of_bits(bits));
    const double want = decoded(bits, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_TRUE(std::isnan(to_float(this->of_bits(this->rounded(wide))))) << bits;
    } else {
      ASSERT_EQ(wide, want) << bits;
      ASSERT_EQ(std::signbit(wide), std::signbit(want)) << bits;
      ASSERT_EQ(this->rounded(wide), bits);
    }
  }
}

// At every boundary between two neighbours: the middle goes to the even one, anything nearer to one
// of them goes there. The last boundary is that to infinity.
TYPED_TEST(Rounding, IsToTheNearestTiesToEven) {
  for (unsigned sign : {0u, 0x8000u})
    for (unsigned bits = 0; bits < this->kInfinityBits; ++bits) {
      const double low = decoded(bits, TypeParam::kExponentBits, TypeParam::kMantissaBits);
      // As if the exponent went on where the upper neighbour is infinity.
      const double high =
          bits + 1 < this->kInfinityBits
              ? decoded(bits + 1, TypeParam::kExponentBits, TypeParam::kMantissaBits)
              : 2 * low - decoded(bits - 1, TypeParam::kExponentBits, TypeParam::kMantissaBits);
      const float middle = float((low + high) / 2);
      ASSERT_EQ(middle, (low + high) / 2) << "the middle is not a float";
      const float s = sign ? -1.0f : 1.0f;
      ASSERT_EQ(this->rounded(s * middle), sign | (bits % 2 == 0 ? bits : bits + 1)) << bits;
      ASSERT_EQ(this->rounded(s * std::nextafter(middle, 0.0f)), sign | bits) << bits;
      ASSERT_EQ(this->rounded(s * std::nextafter(middle, kInfinity)), sign | (bits + 1)) << bits;
    }
}

TYPED_TEST(Rounding, OfSpecialValues) {
  EXPECT_EQ(this->rounded(kInfinity), this->kInfinityBits);
  EXPECT_EQ(this->rounded(-kInfinity), 0x8000u | this->kInfinityBits);
  EXPECT_EQ(this->rounded(std::numeric_limits<float>::max()), this->kInfinityBits);
  EXPECT_EQ(this->rounded(-0.0f), 0x8000u);
  EXPECT_EQ(this->rounded(std::numeric_limits<float>::denorm_min()), 0u);
  // NaN whose upper bits alone would read as infinity.
  for (std::uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu, 0xffffffffu})
    EXPECT_TRUE(std::isnan(to_float(this->of_bits(this->rounded(std::bit_cast<float>(nan))))))
        << std::hex << nan;
}

// E4M3 is not an IEEE format: its largest exponent holds numbers, all but one.
double decoded_e4m3(unsigned bits) {
  if ((bits & 0x7f) == 0x7f) return std::nan("");
  const int exponent = int(bits >> 3) & 15, mantissa = int(bits) & 7;
  const double sign = bits & 0x80 ? -1 : 1;
  return exponent == 0 ? sign * std::ldexp(mantissa, -9)
                       : sign * std::ldexp(8 + mantissa, exponent - 10);
}

TEST(E4m3, EveryValueIsWidenedExactlyAndComesBack) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const float wide = to_float(f8e4m3{std::uint8_t(bits)});
    const double want = decoded_e4m3(bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
    } else {
      ASSERT_EQ(wide, want) << bits;
    }
    ASSERT_EQ(std::signbit(wide), bits >= 128) << bits;
    ASSERT_EQ(to_f8e4m3(wide).bits, bits);
  }
  EXPECT_EQ(to_float(f8e4m3{0x7e}), kMaxF8e4m3);
}

TEST(E4m3, RoundsToTheNearestTiesToEven) {
  for (unsigned sign : {0u, 0x80u})
    for (unsigned bits = 0; bits < 0x7e; ++bits) {
      const auto middle = float((decoded_e4m3(bits) + decoded_e4m3(bits + 1)) / 2);
      const float s = sign ? -1.0f : 1.0f;
      const auto rounded = [&](float x) { return to_f8e4m3(s * x).bits; };
      ASSERT_EQ(rounded(middle), sign | (bits % 2 == 0 ? bits : bits + 1)) << bits;
      ASSERT_EQ(rounded(std::nextafter(middle, 0.0f)), sign | bits) << bits;
      ASSERT_EQ(rounded(std::nextafter(middle, kInfinity)), sign | (bits + 1)) << bits;
    }
}

TEST(E4m3, SaturatesAndKeepsNan) {
  for (float x : {448.0f, 448.5f, 464.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(to_f8e4m3(x).bits, 0x7e) << x;
    EXPECT_EQ(to_f8e4m3(-x).bits, 0xfe) << x;
  }
  EXPECT_EQ(to_f8e4m3(std::numeric_limits<float>::denorm_min()).bits, 0);
  EXPECT_EQ(to_f8e4m3(-0.0f).bits, 0x80);
  for (std::uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0xffffffffu})
    EXPECT_TRUE(std::isnan(to_float(to_f8e4m3(std::bit_cast<float>(nan))))) << std::hex << nan;
}

TEST(DType, HasANameASizeAndAKind) {
  EXPECT_EQ(name(DType::bf16), "bf16");
  EXPECT_EQ(name(DType::f8e4m3), "f8e4m3");
  for (DType d : {DType::f32, DType::i32}) EXPECT_EQ(size_of(d), 4u);
  for (DType d : {DType::f16, DType::bf16}) EXPECT_EQ(size_of(d), 2u);
  for (DType d : {DType::f8e4m3, DType::i8, DType::u8}) EXPECT_EQ(size_of(d), 1u);
  for (DType d : {DType::f32, DType::f16, DType::bf16}) EXPECT_TRUE(is_float(d));
  for (DType d : {DType::f8e4m3, DType::i8, DType::u8, DType::i32}) EXPECT_FALSE(is_float(d));
}

TEST(VisitDType, CallsTheTypeOrNamesTheOnesThereAre) {
  DType seen = DType::f32;
  visit_dtype<float, bf16, std::int32_t>(DType::bf16, "Op", [&]<class T>() { seen = dtype_of<T>; });
  EXPECT_EQ(seen, DType::bf16);
  try {
    visit_dtype<float, bf16>(DType::i8, "Op", []<class T>() { FAIL(); });
    FAIL();
  } catch (const Unsupported& e) {
    EXPECT_STREQ(e.what(), "Op has no i8 version; it has: f32 bf16");
  }
}

TEST(Convert, GoesThroughFloatBetweenAnyTwoFloatTypes) {
  const std::vector<float> values{0, 1, -2.5f, 1.0f / 3, 65504, 1e-3f, 1e-7f, -kInfinity};
  const auto run = [&]<class From, class To>() {
    std::vector<From> from;
    for (float v : values) from.push_back(from_float<From>(v));
    std::vector<To> to(from.size());
    convert(from.data(), dtype_of<From>, to.data(), dtype_of<To>, from.size());
    for (std::size_t i = 0; i < from.size(); ++i)
      EXPECT_EQ(to_float(to[i]), to_float(from_float<To>(to_float(from[i])))) << i;
  };
  const auto from_each = [&]<class To>() {
    run.operator()<float, To>();
    run.operator()<f16, To>();
    run.operator()<bf16, To>();
    run.operator()<f8e4m3, To>();
  };
  from_each.operator()<float>();
  from_each.operator()<f16>();
  from_each.operator()<bf16>();
  from_each.operator()<f8e4m3>();
}

TEST(Convert, CopiesOneTypeToItselfBitForBit) {
  const std::vector<std::uint8_t> from{0, 1, 127, 128, 255};
  std::vector<std::uint8_t> to(from.size());
  convert(from.data(), DType::f8e4m3, to.data(), DType::f8e4m3, from.size());
  EXPECT_EQ(from, to);
}

TEST(Convert, NamesTheTypesItHas) {
  float to = 7;
  const std::int32_t from = 1;
  try {
    convert(&from, DType::i32, &to, DType::f32, 1);
    FAIL();
  } catch (const Unsupported& e) {
    EXPECT_STREQ(e.what(), "convert has no i32 version; it has: f32 f16 bf16 f8e4m3");
  }
  EXPECT_EQ(to, 7);
}

}  // namespace
}  // namespace ostro
