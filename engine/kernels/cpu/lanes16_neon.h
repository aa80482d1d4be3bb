// Lanes16 of lanes16.h, which alone includes this: four NEON registers.
// Run under an emulator only, see binary_mos_linear_neon.cc.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

struct Lanes16 {
  float32x4_t quad[4];  // lanes 4 i to 4 i + 3
};

namespace internal {

template <typename F>
inline Lanes16 ForEachQuad(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

// NaN unlike vmaxq_f32: as Max and Min below.
inline float32x4_t MaxQuad(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
inline float32x4_t MinQuad(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}

}  // namespace internal

inline Lanes16 Set1(float a) {
  return internal::ForEachQuad([&](int) { return vdupq_n_f32(a); });
}
inline Lanes16 Load(const float* p) {
  return internal::ForEachQuad([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline Lanes16 Load(const uint16_t* half) {
  return internal::ForEachQuad([&](int i) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + 4 * i)));
  });
}
inline float ToFloat(uint16_t half) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))),
                        0);
}
inline void Store(const Lanes16& a, float* p) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.quad[i]);
}
inline void Store(const Lanes16& a, uint16_t* half) {
  for (int i = 0; i < 4; ++i) {
    vst1_u16(half + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.quad[i])));
  }
}

inline Lanes16 Add(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return vaddq_f32(a.quad[i], b.quad[i]); });
}
inline Lanes16 Sub(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return vsubq_f32(a.quad[i], b.quad[i]); });
}
inline Lanes16 Mul(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return vmulq_f32(a.quad[i], b.quad[i]); });
}
inline Lanes16 Div(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return vdivq_f32(a.quad[i], b.quad[i]); });
}
// a > b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Max(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return internal::MaxQuad(a.quad[i], b.quad[i]); });
}
// a < b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Min(const Lanes16& a, const Lanes16& b) {
  return internal::ForEachQuad(
      [&](int i) { return internal::MinQuad(a.quad[i], b.quad[i]); });
}
// |a|
inline Lanes16 Abs(const Lanes16& a) {
  return internal::ForEachQuad([&](int i) { return vabsq_f32(a.quad[i]); });
}
// a * b + c, rounded once.
inline Lanes16 Fma(const Lanes16& a, const Lanes16& b, const Lanes16& c) {
  return internal::ForEachQuad(
      [&](int i) { return vfmaq_f32(c.quad[i], a.quad[i], b.quad[i]); });
}

namespace internal {

// 2^k as bits; k is t's low mantissa bits minus those of 1.5 * 2^23.
inline void ScaleHalves(const Lanes16& t, Lanes16& first, Lanes16& second) {
  const int32x4_t bias = vdupq_n_s32(127);
  for (int i = 0; i < 4; ++i) {
    const int32x4_t k =
        vsubq_s32(vreinterpretq_s32_f32(t.quad[i]), vdupq_n_s32(0x4b400000));
    const int32x4_t k1 = vshrq_n_s32(k, 1);
    const int32x4_t k2 = vsubq_s32(k, k1);
    first.quad[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k1, bias), 23));
    second.quad[i] =
        vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k2, bias), 23));
  }
}

}  // namespace internal

// The tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1.
inline float ReduceAdd(const Lanes16& a) {
  const float32x4_t by4 = vaddq_f32(vaddq_f32(a.quad[0], a.quad[2]),
                                    vaddq_f32(a.quad[1], a.quad[3]));
  const float32x2_t by2 = vadd_f32(vget_low_f32(by4), vget_high_f32(by4));
  return vget_lane_f32(by2, 0) + vget_lane_f32(by2, 1);
}
// The same tree, with Max.
inline float ReduceMax(const Lanes16& a) {
  const float32x4_t by4 =
      internal::MaxQuad(internal::MaxQuad(a.quad[0], a.quad[2]),
                        internal::MaxQuad(a.quad[1], a.quad[3]));
  const float32x2_t low = vget_low_f32(by4);
  const float32x2_t high = vget_high_f32(by4);
  const float32x2_t by2 = vbsl_f32(vcgt_f32(low, high), low, high);
  const float first = vget_lane_f32(by2, 0);
  const float second = vget_lane_f32(by2, 1);
  return first > second ? first : second;
}
// out[i] = ReduceAdd(a[i]).
inline void ReduceAdd4(const Lanes16 a[4], float out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = ReduceAdd(a[i]);
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
