// Lanes16 of lanes16.h, which alone includes this: an array.
#pragma once

#include <bit>
#include <cstdint>

#include "engine/core/float16.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

struct Lanes16 {
  float lane[kLanes];
};

namespace internal {

template <typename F>
inline Lanes16 ForEachLane(F f) {
  Lanes16 result;
  for (int i = 0; i < kLanes; ++i) result.lane[i] = f(i);
  return result;
}

}  // namespace internal

inline Lanes16 Set1(float a) {
  return internal::ForEachLane([&](int) { return a; });
}
inline Lanes16 Load(const float* p) {
  return internal::ForEachLane([&](int i) { return p[i]; });
}
inline Lanes16 Load(const uint16_t* half) {
  return internal::ForEachLane([&](int i) { return HalfToFloat(half[i]); });
}
inline float ToFloat(uint16_t half) { return HalfToFloat(half); }
inline void Store(const Lanes16& a, float* p) {
  for (int i = 0; i < kLanes; ++i) p[i] = a.lane[i];
}
inline void Store(const Lanes16& a, uint16_t* half) {
  for (int i = 0; i < kLanes; ++i) half[i] = FloatToHalf(a.lane[i]);
}

inline Lanes16 Add(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Lanes16 Sub(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Lanes16 Mul(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Lanes16 Div(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a > b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Max(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane(
      [&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// a < b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Min(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachLane(
      [&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// |a|
inline Lanes16 Abs(const Lanes16& a) {
  return internal::ForEachLane(
      [&](int i) { return __builtin_fabsf(a.lane[i]); });
}
// a * b + c, rounded once.
inline Lanes16 Fma(const Lanes16& a, const Lanes16& b, const Lanes16& c) {
  return internal::ForEachLane(
      [&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}

namespace internal {

// 2^k as bits; k is t's low mantissa bits minus those of 1.5 * 2^23.
inline void ScaleHalves(const Lanes16& t, Lanes16& first, Lanes16& second) {
  for (int i = 0; i < kLanes; ++i) {
    const auto k =
        static_cast<int32_t>(std::bit_cast<uint32_t>(t.lane[i]) - 0x4b400000u);
    const int32_t k1 = k >> 1;
    const int32_t k2 = k - k1;
    first.lane[i] = std::bit_cast<float>(static_cast<uint32_t>(k1 + 127) << 23);
    second.lane[i] =
        std::bit_cast<float>(static_cast<uint32_t>(k2 + 127) << 23);
  }
}

}  // namespace internal

// The tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1.
inline float ReduceAdd(Lanes16 a) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.lane[i] += a.lane[i + width];
  }
  return a.lane[0];
}
// The same tree, with Max.
inline float ReduceMax(Lanes16 a) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      const float other = a.lane[i + width];
      a.lane[i] = a.lane[i] > other ? a.lane[i] : other;
    }
  }
  return a.lane[0];
}
// out[i] = ReduceAdd(a[i]).
inline void ReduceAdd4(const Lanes16 a[4], float out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = ReduceAdd(a[i]);
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
