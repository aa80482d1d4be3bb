// The arithmetic of engine/sampler.cc, to the bit: weights of tokens, their
// order, and the random bits.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

// e^x for x <= 0; 0 below -87.
BINARYMOS_DEVICE float WeightExp(float x) {
  if (x < -87.0f) return 0.0f;
  const float round = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + round;
  const float n = shifted - round;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = (p * (r * r) + r) + 1.0f;
  return mantissa * BitsFloat((FloatBits(shifted) << 23) + (127u << 23));
}

// Weights are added in units of 2^-43, rounded down; what is below the smallest
// weight counts as nothing.
inline constexpr uint32_t kSmallestWeightBits = (127u - 43u) << 23;
inline constexpr uint32_t kLargestWeightBits = 127u << 23;  // 1
BINARYMOS_DEVICE uint64_t InUnits(uint32_t weight_bits) {
  return static_cast<uint64_t>(BitsFloat(weight_bits) * 0x1p43f);
}

// Unsigned integers in the order of floats, -0 as 0, and back.
BINARYMOS_DEVICE uint32_t OrderedBits(float value) {
  const uint32_t bits = FloatBits(value + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
BINARYMOS_DEVICE float OfOrderedBits(uint32_t ordered) {
  return BitsFloat((ordered >> 31) != 0 ? ordered ^ 0x80000000u : ~ordered);
}
// Of -max: everything below is masked.
inline constexpr uint32_t kLowestOrdered = 0x00800000u;

// The least sum that reaches `share` of `total`.
BINARYMOS_DEVICE uint64_t ShareOf(float share, uint64_t total) {
  const double exact = static_cast<double>(share) * static_cast<double>(total);
  auto sum = static_cast<uint64_t>(exact);
  if (static_cast<double>(sum) < exact) ++sum;
  if (sum < 1) return 1;
  return sum < total ? sum : total;
}

// PhiloxWord of engine/core/philox.h.
BINARYMOS_DEVICE uint64_t RandomWord(uint64_t seed, uint32_t sample_index,
                                     uint32_t position) {
  uint32_t a = position, b = sample_index, c = 0, d = 0;
  auto key0 = static_cast<uint32_t>(seed);
  auto key1 = static_cast<uint32_t>(seed >> 32);
  BINARYMOS_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * a;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(product1 >> 32) ^ b ^ key0;
    b = static_cast<uint32_t>(product1);
    c = static_cast<uint32_t>(product0 >> 32) ^ d ^ key1;
    d = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return (uint64_t{b} << 32) | a;
}

// The upper half of the product.
BINARYMOS_DEVICE uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  const uint64_t low_a = static_cast<uint32_t>(a);
  const uint64_t low_b = static_cast<uint32_t>(b);
  const uint64_t middle = (a >> 32) * low_b + ((low_a * low_b) >> 32);
  const uint64_t other = low_a * (b >> 32) + static_cast<uint32_t>(middle);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
}

}  // namespace binarymos::cuda
