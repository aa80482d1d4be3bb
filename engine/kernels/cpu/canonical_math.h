// The canonical f32 arithmetic of the CPU kernels (DESIGN section 6): 16
// strided lanes, explicit fma, one reduction tree, one exp.
//
// A kernel is written once against Lanes16 and compiled twice: for the
// baseline instruction set (namespace `portable`) and, in files named
// *_avx2.cc that get -mavx2 -mfma -mf16c, for AVX2 (namespace `avx2`). Files
// named *_avx512.cc use the AVX2 code, in a namespace of their own because the
// compiler may put AVX-512 into it. Every operation here gives the same bits
// everywhere, except that the payload of a NaN may differ.
//
// Lane i of a long sum holds elements i, i + 16, i + 32, ...; a tail is read as
// if zeros followed it (the Partial loads), so there is no other code path.
// Sums over a layer's inputs are cut into slices of 256 first, see
// GroupedDot().
//
// Files compiled for AVX2 must not instantiate inline functions of the standard
// library or of other headers: the linker could choose that copy for code that
// also runs on older CPUs. Hence the compiler's builtins below.
#pragma once

#include <cstdint>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BINARYMOS_CPU_AVX2 1
#if defined(__AVX512F__)
#define BINARYMOS_CPU_ARCH avx512
#else
#define BINARYMOS_CPU_ARCH avx2
#endif
#include <immintrin.h>
#else
#define BINARYMOS_CPU_AVX2 0
#define BINARYMOS_CPU_ARCH portable
#include "engine/core/float16.h"
#endif

namespace binarymos::cpu {

// How the inputs of a layer are cut: GroupedDot() below, the binary linear.
inline constexpr int kSliceInputs = 256;
inline constexpr int kSumGroups = 8;  // of slices

inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kLanes = 16;
// The first slice of a group; the group ends where the next begins.
inline constexpr int64_t GroupBegin(int64_t group, int64_t num_slices) {
  return group * num_slices / kSumGroups;
}

// a * b + c, rounded once.
inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float Sqrt(float a) { return __builtin_sqrtf(a); }

// 16 floats. Operations act on each lane and round as IEEE 754 says.
struct Lanes16;

#if BINARYMOS_CPU_AVX2

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

#else  // portable

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

#endif  // BINARYMOS_CPU_AVX2

inline Lanes16 Zero() { return Set1(0.0f); }

// Elements [0, n) of `p`, zeros after them. T is float or uint16_t (f16).
// REQUIRES: 0 <= n <= 16.
template <typename T>
inline Lanes16 LoadPartial(const T* p, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return Load(padded);
}
template <typename T>
inline void StorePartial(const Lanes16& a, T* p, int64_t n) {
  T padded[kLanes];
  Store(a, padded);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
}

// As the Partial versions, for the 16 elements from p[k] of an array of `size`.
template <typename T>
inline Lanes16 LoadAt(const T* p, int64_t k, int64_t size) {
  return size - k >= kLanes ? Load(p + k) : LoadPartial(p + k, size - k);
}
template <typename T>
inline void StoreAt(const Lanes16& a, T* p, int64_t k, int64_t size) {
  if (size - k >= kLanes) return Store(a, p + k);
  StorePartial(a, p + k, size - k);
}

// e^x, within 1 ulp; below -104 it is 0, above 88.8 it is infinity, and NaN
// stays NaN. x = k ln 2 + r with |r| <= ln 2 / 2; the Taylor polynomial of
// degree 7 is off by less than r^8 / 8! = 6e-9, a tenth of an ulp.
inline Lanes16 Exp(const Lanes16& value) {
  // The order of the operands lets NaN through.
  const Lanes16 x = Min(Set1(89.0f), Max(Set1(-104.0f), value));
  const Lanes16 magic = Set1(0x1.8p23f);  // adding it rounds to an integer
  const Lanes16 t = Fma(x, Set1(0x1.715476p+0f), magic);
  const Lanes16 k = Sub(t, magic);
  Lanes16 r = Fma(k, Set1(-0x1.62e4p-1f), x);  // 15 bits of ln 2: k * it exact
  r = Fma(k, Set1(-0x1.7f7d1cp-20f), r);       // the rest of ln 2
  Lanes16 p = Set1(1.0f / 5040);
  p = Fma(p, r, Set1(1.0f / 720));
  p = Fma(p, r, Set1(1.0f / 120));
  p = Fma(p, r, Set1(1.0f / 24));
  p = Fma(p, r, Set1(1.0f / 6));
  p = Fma(p, r, Set1(0.5f));
  p = Fma(p, r, Set1(1.0f));
  p = Fma(p, r, Set1(1.0f));
  // 2^k in two factors: k reaches -151 and 128, outside what one float holds.
  Lanes16 first, second;
  internal::ScaleHalves(t, first, second);
  return Mul(Mul(p, first), second);
}
inline float Exp(float x) {
  float lanes[kLanes];
  Store(Exp(Set1(x)), lanes);
  return lanes[0];
}

// sum of a[k] * b[k] over k in [0, n). Each operand is f32 or f16.
template <typename A, typename B>
inline float Dot(const A* a, const B* b, int64_t n) {
  Lanes16 sum = Zero();
  for (int64_t k = 0; k < n; k += kLanes) {
    sum = Fma(LoadAt(a, k, n), LoadAt(b, k, n), sum);
  }
  return ReduceAdd(sum);
}

// The same sum where K is the inputs of a layer (router, RMSNorm): a Dot() per
// slice of 256, slices added ascending inside 8 contiguous groups, each from 0,
// then the groups ascending. Many short chains, whose parts different
// multiprocessors of a GPU can compute.
template <typename A, typename B>
inline float GroupedDot(const A* a, const B* b, int64_t n) {
  const int64_t num_slices = (n + kSliceInputs - 1) / kSliceInputs;
  float total = 0.0f;
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t end = GroupBegin(group + 1, num_slices);
    float sum = 0.0f;
    for (int64_t s = GroupBegin(group, num_slices); s < end; ++s) {
      const int64_t first = s * kSliceInputs;
      const int64_t left = n - first;
      sum += Dot(a + first, b + first,
                 left < kSliceInputs ? left : int64_t{kSliceInputs});
    }
    total += sum;
  }
  return total;
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
