#include "engine/rank1.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace binarymos {
namespace {

ConstTensorView View(const std::vector<float>& values, int64_t out,
                     int64_t in) {
  return {values.data(), DType::kF32, {out, in}};
}

std::vector<float> Gaussian(size_t size) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(Rank1Test, FindsTheFactorsOfARankOneMatrix) {
  const std::vector<float> u = {1, 2, 0.5};
  const std::vector<float> v = {3, 0, 1, 4};
  std::vector<float> w;
  for (const float a : u) {
    for (const float b : v) w.push_back(w.size() % 2 == 0 ? a * b : -a * b);
  }
  const Rank1 scales = Rank1OfAbs(View(w, 3, 4));
  double u_norm = 0;
  double v_norm = 0;
  for (const float a : u) u_norm += a * a;
  for (const float b : v) v_norm += b * b;
  // Both have the same length.
  const double balance = std::sqrt(std::sqrt(v_norm / u_norm));
  for (size_t o = 0; o < u.size(); ++o) {
    EXPECT_NEAR(scales.out_scale[o], u[o] * balance, 1e-6);
  }
  for (size_t i = 0; i < v.size(); ++i) {
    EXPECT_NEAR(scales.in_scale[i], v[i] / balance, 1e-6);
  }
}

// |W| in_scale = s out_scale and |W|ᵀ out_scale = s in_scale for the singular
// value s, which is the square of their length; and for a matrix without zeros
// only the leading pair is positive (Perron and Frobenius).
TEST(Rank1Test, FindsTheLeadingSingularVectors) {
  constexpr int kOut = 70;
  constexpr int kIn = 50;
  const std::vector<float> w = Gaussian(kOut * kIn);
  const Rank1 scales = Rank1OfAbs(View(w, kOut, kIn));
  double s = 0;
  for (const float value : scales.in_scale) s += double{value} * value;
  for (int o = 0; o < kOut; ++o) {
    double sum = 0;
    for (int i = 0; i < kIn; ++i) {
      sum += std::abs(double{w[o * kIn + i]}) * scales.in_scale[i];
    }
    EXPECT_GT(scales.out_scale[o], 0);
    EXPECT_NEAR(sum, s * scales.out_scale[o], 1e-5 * sum);
  }
  for (int i = 0; i < kIn; ++i) {
    double sum = 0;
    for (int o = 0; o < kOut; ++o) {
      sum += std::abs(double{w[o * kIn + i]}) * scales.out_scale[o];
    }
    EXPECT_NEAR(sum, s * scales.in_scale[i], 1e-5 * sum);
  }
}

TEST(Rank1Test, OfZerosIsZero) {
  const Rank1 scales = Rank1OfAbs(View(std::vector<float>(12), 3, 4));
  EXPECT_EQ(scales.out_scale, std::vector<float>(3));
  EXPECT_EQ(scales.in_scale, std::vector<float>(4));
}

}  // namespace
}  // namespace binarymos
