// Lanes16 of lanes16.h, which alone includes this: two AVX registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

struct Lanes16 {
  __m256 low;   // lanes 0 to 7
  __m256 high;  // lanes 8 to 15
};

inline Lanes16 Set1(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Lanes16 Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline Lanes16 Load(const uint16_t* half) {
  const auto* p = reinterpret_cast<const __m128i*>(half);
  return {_mm256_cvtph_ps(_mm_loadu_si128(p)),
          _mm256_cvtph_ps(_mm_loadu_si128(p + 1))};
}
inline float ToFloat(uint16_t half) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
inline void Store(const Lanes16& a, float* p) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline void Store(const Lanes16& a, uint16_t* half) {
  auto* p = reinterpret_cast<__m128i*>(half);
  _mm_storeu_si128(p, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(p + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}

inline Lanes16 Add(const Lanes16& a, const Lanes16& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes16 Sub(const Lanes16& a, const Lanes16& b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes16 Mul(const Lanes16& a, const Lanes16& b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes16 Div(const Lanes16& a, const Lanes16& b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
// a > b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Max(const Lanes16& a, const Lanes16& b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
// a < b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Min(const Lanes16& a, const Lanes16& b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
// |a|
inline Lanes16 Abs(const Lanes16& a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
// a * b + c, rounded once.
inline Lanes16 Fma(const Lanes16& a, const Lanes16& b, const Lanes16& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low),
          _mm256_fmadd_ps(a.high, b.high, c.high)};
}

namespace internal {

// 2^k as bits; k is t's low mantissa bits minus those of 1.5 * 2^23.
inline void ScaleHalves(__m256 t, __m256& first, __m256& second) {
  const __m256i k =
      _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(0x4b400000));
  const __m256i k1 = _mm256_srai_epi32(k, 1);
  const __m256i k2 = _mm256_sub_epi32(k, k1);
  const __m256i bias = _mm256_set1_epi32(127);
  first =
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k1, bias), 23));
  second =
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k2, bias), 23));
}
inline void ScaleHalves(const Lanes16& t, Lanes16& first, Lanes16& second) {
  ScaleHalves(t.low, first.low, second.low);
  ScaleHalves(t.high, first.high, second.high);
}

}  // namespace internal

// The tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1.
inline float ReduceAdd(const Lanes16& a) {
  const __m256 by8 = _mm256_add_ps(a.low, a.high);
  const __m128 by4 =
      _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
// The same tree, with Max.
inline float ReduceMax(const Lanes16& a) {
  const __m256 by8 = _mm256_max_ps(a.low, a.high);
  const __m128 by4 =
      _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}
// out[i] = ReduceAdd(a[i]): the same four trees, side by side.
inline void ReduceAdd4(const Lanes16 a[4], float out[4]) {
  __m128 by4[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 by8 = _mm256_add_ps(a[i].low, a[i].high);
    by4[i] =
        _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  }
  _MM_TRANSPOSE4_PS(by4[0], by4[1], by4[2], by4[3]);
  _mm_storeu_ps(
      out, _mm_add_ps(_mm_add_ps(by4[0], by4[2]), _mm_add_ps(by4[1], by4[3])));
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
