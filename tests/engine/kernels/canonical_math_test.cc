// The arithmetic that every CPU kernel is made of, through the kernel tables.
#include "engine/kernels/cpu/canonical_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Floats of every exponent and sign, NaNs and infinities among them.
std::vector<float> AllKindsOfFloats() {
  std::vector<float> values = {0.0f,     -0.0f,     kInf,      -kInf,
                               kNan,     88.72283f, 88.72284f, -87.3365f,
                               -103.97f, -103.98f};
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  return values;
}

class CanonicalMathTest : public KernelPathTest {};

TEST_P(CanonicalMathTest, ExpIsWithinOneUnitInTheLastPlace) {
  std::vector<float> x;
  for (int i = 0; i <= 200000; ++i) {
    x.push_back(-87.0f + 175.7f * static_cast<float>(i) / 200000.0f);
  }
  std::vector<float> y(x.size());
  kernels().exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    const auto nearest = static_cast<float>(exact);
    const double ulp = std::nextafter(nearest, kInf) - nearest;
    ASSERT_LE(std::abs(y[i] - exact), ulp) << x[i];
  }
}

TEST_P(CanonicalMathTest, ExpOfSmallResultsIsWithinOneSubnormal) {
  std::vector<float> x;
  for (float value = -104.5f; value < -86.0f; value += 0.003f) {
    x.push_back(value);
  }
  std::vector<float> y(x.size());
  kernels().exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    ASSERT_LE(std::abs(y[i] - exact), 0x1p-149 + exact * 2 * kUnit) << x[i];
  }
}

TEST_P(CanonicalMathTest, ExpOfSpecialValues) {
  const std::vector<float> x = {0.0f,  -0.0f,  kInf,  -kInf,  kNan,
                                1e30f, -1e30f, 89.0f, -104.5f};
  std::vector<float> y(x.size());
  kernels().exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
  EXPECT_TRUE(
      SameBits(y, {1.0f, 1.0f, kInf, 0.0f, kNan, kInf, 0.0f, kInf, 0.0f}));
}

TEST_P(CanonicalMathTest, EveryHalfConvertsExactly) {
  std::vector<uint16_t> halves(0x10000);
  std::vector<float> expected(halves.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    halves[i] = static_cast<uint16_t>(i);
    expected[i] = HalfToFloat(halves[i]);
  }
  std::vector<float> values(halves.size());
  kernels().half_to_float(halves.data(), values.data(), 0x10000);
  EXPECT_TRUE(SameBits(values, expected));
}

TEST_P(CanonicalMathTest, FloatsRoundToHalfAsTheScalarConversionDoes) {
  const std::vector<float> values = AllKindsOfFloats();
  std::vector<uint16_t> halves(values.size());
  kernels().float_to_half(values.data(), halves.data(),
                          static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(halves[i], FloatToHalf(values[i])) << values[i];
  }
}

TEST_P(CanonicalMathTest, ATailIsReadAndWrittenWithinItsBounds) {
  for (int64_t n = 0; n <= 40; ++n) {
    // Exactly n elements on the heap: a sanitizer sees any further access.
    const std::vector<float> x = RandomFloats(n, 1);
    std::vector<uint16_t> halves(n);
    std::vector<float> back(n);
    kernels().float_to_half(x.data(), halves.data(), n);
    kernels().half_to_float(halves.data(), back.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(back[i], HalfToFloat(FloatToHalf(x[i]))) << n << ", " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, CanonicalMathTest, kAllPaths, PathName);

using CanonicalMathPathsTest = PathsAgreeTest;

TEST_P(CanonicalMathPathsTest, ExpHasTheBitsOfThePortablePath) {
  const std::vector<float> x = AllKindsOfFloats();
  std::vector<float> a(x.size()), b(x.size());
  portable().exp(x.data(), a.data(), static_cast<int64_t>(x.size()));
  kernels().exp(x.data(), b.data(), static_cast<int64_t>(x.size()));
  EXPECT_TRUE(SameBits(a, b));
}

// These look at the arithmetic of this file's own compilation.

TEST(Lanes16Test, AddUsesTheDocumentedTree) {
  float lanes[16];
  const std::vector<float> values = RandomFloats(16, 2, 1e3f);
  std::copy(values.begin(), values.end(), lanes);
  float expected[16];
  std::copy(values.begin(), values.end(), expected);
  for (const int width : {8, 4, 2, 1}) {
    for (int i = 0; i < width; ++i) expected[i] += expected[i + width];
  }
  EXPECT_EQ(cpu::ReduceAdd(cpu::Load(lanes)), expected[0]);
  const cpu::Lanes16 four[4] = {cpu::Load(lanes), cpu::Zero(), cpu::Load(lanes),
                                cpu::Set1(1.0f)};
  float sums[4];
  cpu::ReduceAdd4(four, sums);
  EXPECT_EQ(sums[0], expected[0]);
  EXPECT_EQ(sums[1], 0.0f);
  EXPECT_EQ(sums[2], expected[0]);
  EXPECT_EQ(sums[3], 16.0f);
}

TEST(Lanes16Test, DotSumsStridedLanesWithFma) {
  const std::vector<float> a = RandomFloats(75, 3);
  const std::vector<float> b = RandomFloats(75, 4);
  float lanes[16] = {};
  for (int i = 0; i < 75; ++i) {
    lanes[i % 16] = std::fma(a[i], b[i], lanes[i % 16]);
  }
  for (const int width : {8, 4, 2, 1}) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  EXPECT_EQ(cpu::Dot(a.data(), b.data(), 75), lanes[0]);
}

TEST(Lanes16Test, GroupedDotSumsSlicesInsideGroupsAndThenGroups) {
  for (const int64_t n : {1, 256, 257, 1000, 2048, 2049, 11008}) {
    SCOPED_TRACE(n);
    const std::vector<float> a = RandomFloats(n, 3);
    const std::vector<float> b = RandomFloats(n, 4);
    const int64_t slices = (n + 255) / 256;
    float total = 0.0f;
    for (int64_t group = 0; group < 8; ++group) {
      float sum = 0.0f;
      for (int64_t s = group * slices / 8; s < (group + 1) * slices / 8; ++s) {
        sum += cpu::Dot(a.data() + 256 * s, b.data() + 256 * s,
                        std::min<int64_t>(256, n - 256 * s));
      }
      total += sum;
    }
    EXPECT_EQ(cpu::GroupedDot(a.data(), b.data(), n), total);
  }
}

TEST(Lanes16Test, MaxAndMinReturnTheSecondOperandForNan) {
  const auto first = [](const cpu::Lanes16& lanes) {
    float values[16];
    cpu::Store(lanes, values);
    return values[0];
  };
  EXPECT_EQ(first(cpu::Max(cpu::Set1(kNan), cpu::Set1(1.0f))), 1.0f);
  EXPECT_TRUE(std::isnan(first(cpu::Max(cpu::Set1(1.0f), cpu::Set1(kNan)))));
  EXPECT_EQ(first(cpu::Min(cpu::Set1(kNan), cpu::Set1(1.0f))), 1.0f);
  EXPECT_TRUE(std::isnan(first(cpu::Min(cpu::Set1(1.0f), cpu::Set1(kNan)))));
}

INSTANTIATE_TEST_SUITE_P(Paths, CanonicalMathPathsTest, kFastPaths, PathName);

}  // namespace
}  // namespace binarymos
