// Lanes16 of lanes16.h, which alone includes this: one AVX-512 register.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

struct Lanes16 {
  __m512 lanes;
};

inline Lanes16 Set1(float a) { return {_mm512_set1_ps(a)}; }
inline Lanes16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes16 Load(const uint16_t* half) {
  return {_mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)))};
}
inline float ToFloat(uint16_t half) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
inline void Store(const Lanes16& a, float* p) { _mm512_storeu_ps(p, a.lanes); }
inline void Store(const Lanes16& a, uint16_t* half) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(half),
                      _mm512_cvtps_ph(a.lanes, _MM_FROUND_TO_NEAREST_INT));
}

inline Lanes16 Add(const Lanes16& a, const Lanes16& b) {
  return {_mm512_add_ps(a.lanes, b.lanes)};
}
inline Lanes16 Sub(const Lanes16& a, const Lanes16& b) {
  return {_mm512_sub_ps(a.lanes, b.lanes)};
}
inline Lanes16 Mul(const Lanes16& a, const Lanes16& b) {
  return {_mm512_mul_ps(a.lanes, b.lanes)};
}
inline Lanes16 Div(const Lanes16& a, const Lanes16& b) {
  return {_mm512_div_ps(a.lanes, b.lanes)};
}
// a > b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Max(const Lanes16& a, const Lanes16& b) {
  return {_mm512_max_ps(a.lanes, b.lanes)};
}
// a < b ? a : b, so that b is the result if either is NaN.
inline Lanes16 Min(const Lanes16& a, const Lanes16& b) {
  return {_mm512_min_ps(a.lanes, b.lanes)};
}
// |a|
inline Lanes16 Abs(const Lanes16& a) {
  return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.lanes)};
}
// a * b + c, rounded once.
inline Lanes16 Fma(const Lanes16& a, const Lanes16& b, const Lanes16& c) {
  return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)};
}

namespace internal {

// 2^k as bits; k is t's low mantissa bits minus those of 1.5 * 2^23.
inline void ScaleHalves(const Lanes16& t, Lanes16& first, Lanes16& second) {
  const __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t.lanes),
                                     _mm512_set1_epi32(0x4b400000));
  const __m512i k1 = _mm512_srai_epi32(k, 1);
  const __m512i k2 = _mm512_sub_epi32(k, k1);
  const __m512i bias = _mm512_set1_epi32(127);
  first.lanes =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(k1, bias), 23));
  second.lanes =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(k2, bias), 23));
}

inline __m256 LowHalf(const Lanes16& a) {
  return _mm512_castps512_ps256(a.lanes);
}
inline __m256 HighHalf(const Lanes16& a) {
  return _mm512_extractf32x8_ps(a.lanes, 1);
}
// Lanes i and i + 8, then i and i + 4.
inline __m128 AddBy4(const Lanes16& a) {
  const __m256 by8 = _mm256_add_ps(LowHalf(a), HighHalf(a));
  return _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
}

}  // namespace internal

// The tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1.
inline float ReduceAdd(const Lanes16& a) {
  const __m128 by4 = internal::AddBy4(a);
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
// The same tree, with Max.
inline float ReduceMax(const Lanes16& a) {
  const __m256 by8 = _mm256_max_ps(internal::LowHalf(a), internal::HighHalf(a));
  const __m128 by4 =
      _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}
// out[i] = ReduceAdd(a[i]): the same four trees, side by side.
inline void ReduceAdd4(const Lanes16 a[4], float out[4]) {
  __m128 by4[4];
  for (int i = 0; i < 4; ++i) by4[i] = internal::AddBy4(a[i]);
  _MM_TRANSPOSE4_PS(by4[0], by4[1], by4[2], by4[3]);
  _mm_storeu_ps(
      out, _mm_add_ps(_mm_add_ps(by4[0], by4[2]), _mm_add_ps(by4[1], by4[3])));
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
