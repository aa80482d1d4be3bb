#include "engine/core/float8.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/core/float16.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// e4m3 by its definition; not for NaN.
double Definition(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// The code of the nearest value, of two the even one, by looking at all.
int Nearest(double value) {
  int best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double distance = std::abs(Definition(code) - std::abs(value));
    const double least = std::abs(Definition(best) - std::abs(value));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

TEST(Float8Test, EveryCodeConvertsByDefinitionAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4m3ToFloat(static_cast<uint8_t>(code));
    EXPECT_EQ(FloatToE4m3(value), code);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, Definition(code)) << code;
      EXPECT_EQ(std::signbit(value), code >= 0x80);
      // Exact in f16, which the tensor cores multiply.
      EXPECT_EQ(HalfToFloat(FloatToHalf(value)), value);
    }
  }
}

TEST(Float8Test, EveryHalfRoundsToTheNearestCode) {
  for (int half = 0; half < 0x10000; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(FloatToE4m3(value), Nearest(value)) << value;
  }
}

TEST(Float8Test, TiesGoToTheEvenCodeAndTheRestToTheNearest) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = E4m3ToFloat(static_cast<uint8_t>(code));
    const float high = E4m3ToFloat(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;  // exact
    ASSERT_EQ(FloatToE4m3(middle), code + code % 2) << code;
    ASSERT_EQ(FloatToE4m3(std::nextafter(middle, 0.0f)), code);
    ASSERT_EQ(FloatToE4m3(std::nextafter(middle, kInf)), code + 1);
  }
}

TEST(Float8Test, WhatIsTooLargeBecomesTheLargest) {
  for (const float value : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f,
                            std::numeric_limits<float>::max()}) {
    EXPECT_EQ(FloatToE4m3(value), 0x7e) << value;
    EXPECT_EQ(FloatToE4m3(-value), 0xfe) << value;
  }
}

TEST(Float8Test, WhatIsNotFiniteBecomesNan) {
  for (const float value : {kInf, -kInf, std::nanf("")}) {
    EXPECT_EQ(FloatToE4m3(value) & 0x7f, 0x7f) << value;
  }
}

}  // namespace
}  // namespace binarymos
