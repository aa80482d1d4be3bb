// The canonical f32 arithmetic of the CPU kernels (DESIGN section 6): 16
// strided lanes, explicit fma, one reduction tree, one exp.
//
// A kernel is written once against Lanes16 (lanes16.h) and compiled for each
// instruction set.
//
// Lane i of a long sum holds elements i, i + 16, i + 32, ...; a tail is read as
// if zeros followed it (the Partial loads), so there is no other code path.
// Sums over a layer's inputs are cut into slices of 256 first, see
// GroupedDot().
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/lanes16.h"

namespace binarymos::cpu {

// How the inputs of a layer are cut: GroupedDot() below, the binary linear.
inline constexpr int kSliceInputs = 256;
inline constexpr int kSumGroups = 8;  // of slices

inline namespace BINARYMOS_CPU_ARCH {

// The first slice of a group; the group ends where the next begins.
inline constexpr int64_t GroupBegin(int64_t group, int64_t num_slices) {
  return group * num_slices / kSumGroups;
}

// a * b + c, rounded once.
inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float Sqrt(float a) { return __builtin_sqrtf(a); }

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
