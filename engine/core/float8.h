// Conversions between f32 and e4m3, the 8-bit format of KV caches: a sign, 4
// bits of exponent (bias 7), 3 of mantissa. No infinities; magnitude 0x7f is
// NaN, 0x7e is 448, the largest.
#pragma once

#include <bit>
#include <cstdint>

namespace binarymos {

// Exact.
inline float E4m3ToFloat(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // zero, subnormal: units of 2^-9
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

// Rounds to nearest, ties to even; what is larger than 448 becomes 448.
// Infinities become NaN, so that an overflow stays to be seen.
inline uint8_t FloatToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return sign | 0x7fu;  // not finite
  if (magnitude >= 0x43e00000u) return sign | 0x7eu;  // 448 and more
  if (magnitude < 0x3c800000u) {                      // below 2^-6
    // Adding 2^14 aligns 2^-9 with the float's last bit, so the addition itself
    // rounds to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) -
                                       std::bit_cast<uint32_t>(0x1p14f));
  }
  const uint32_t odd = (magnitude >> 20) & 1u;
  return sign | static_cast<uint8_t>(
                    (magnitude - (120u << 23) + 0x7ffffu + odd) >> 20);
}

}  // namespace binarymos
