#include "engine/core/float16.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace binarymos {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

bool IsNan(int half) { return (half & 0x7fff) > 0x7c00; }

// IEEE binary16 by its definition.
double Definition(int half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -24)
                               : std::ldexp(1024 + mantissa, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Float16Test, EveryFiniteHalfConvertsByDefinition) {
  for (int half = 0; half < 0x10000; ++half) {
    if ((half & 0x7c00) == 0x7c00) continue;
    ASSERT_EQ(HalfToFloat(static_cast<uint16_t>(half)), Definition(half))
        << half;
  }
}

TEST(Float16Test, EveryHalfComesBackWithTheSameBits) {
  for (int half = 0; half < 0x10000; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    const int expected = IsNan(half) ? half | 0x0200 : half;  // quiet
    ASSERT_EQ(FloatToHalf(value), expected) << half;
    ASSERT_EQ(std::isnan(value), IsNan(half)) << half;
  }
}

TEST(Float16Test, InfinityConvertsBothWays) {
  EXPECT_EQ(HalfToFloat(0x7c00), kInf);
  EXPECT_EQ(HalfToFloat(0xfc00), -kInf);
  EXPECT_EQ(FloatToHalf(kInf), 0x7c00);
  EXPECT_EQ(FloatToHalf(-kInf), 0xfc00);
}

TEST(Float16Test, TiesGoToTheEvenHalfAndTheRestToTheNearest) {
  for (int half = 0; half < 0x7bff; ++half) {
    const float low = HalfToFloat(static_cast<uint16_t>(half));
    const float high = HalfToFloat(static_cast<uint16_t>(half + 1));
    const float middle = (low + high) / 2;  // exact
    const int even = half % 2 == 0 ? half : half + 1;
    ASSERT_EQ(FloatToHalf(middle), even) << half;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, kInf)), half + 1);
    ASSERT_EQ(FloatToHalf(-middle), even | 0x8000) << half;
  }
}

TEST(Float16Test, OverflowStartsHalfWayPastTheLargest) {
  EXPECT_EQ(FloatToHalf(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
}

TEST(Float16Test, BFloat16IsTheUpperHalfOfAFloat) {
  for (const float value : {0.0f, -0.0f, 1.0f, -2.5f, 0x1.fep127f, kInf}) {
    const auto bits =
        static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    EXPECT_EQ(std::bit_cast<uint32_t>(BFloat16ToFloat(bits)),
              std::bit_cast<uint32_t>(value));
  }
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(0x7fc1)));
}

}  // namespace
}  // namespace binarymos
