// Kernels over one row of numbers: conversions, norm, activation, rotation.
// Included only where a CpuKernels table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

// out[i] = T(x[i])
template <typename From, typename To>
inline void ConvertRow(const From* x, To* out, int64_t n) {
  for (int64_t k = 0; k < n; k += kLanes) {
    StoreAt(LoadAt(x, k, n), out, k, n);
  }
}

inline void ExpRow(const float* x, float* out, int64_t n) {
  for (int64_t k = 0; k < n; k += kLanes) {
    StoreAt(Exp(LoadAt(x, k, n)), out, k, n);
  }
}

// out = (x * (1 / sqrt(mean(x²) + eps))) * weight
inline void RmsNormRow(const float* x, const uint16_t* weight, float eps,
                       float* out, int64_t n) {
  const float mean = GroupedDot(x, x, n) / static_cast<float>(n);
  const Lanes16 scale = Set1(1.0f / Sqrt(mean + eps));
  for (int64_t k = 0; k < n; k += kLanes) {
    const Lanes16 normed = Mul(LoadAt(x, k, n), scale);
    StoreAt(Mul(normed, LoadAt(weight, k, n)), out, k, n);
  }
}

// out = (gate / (1 + exp(-gate))) * up
inline void SwiGluRow(const float* gate, const float* up, float* out,
                      int64_t n) {
  for (int64_t k = 0; k < n; k += kLanes) {
    const Lanes16 g = LoadAt(gate, k, n);
    const Lanes16 silu = Div(g, Add(Set1(1.0f), Exp(Sub(Zero(), g))));
    StoreAt(Mul(silu, LoadAt(up, k, n)), out, k, n);
  }
}

inline void RotateHead(float* head, const float* cos, const float* sin,
                       int64_t half_dim) {
  float* second = head + half_dim;
  for (int64_t k = 0; k < half_dim; k += kLanes) {
    const Lanes16 a = LoadAt(head, k, half_dim);
    const Lanes16 b = LoadAt(second, k, half_dim);
    const Lanes16 c = LoadAt(cos, k, half_dim);
    const Lanes16 s = LoadAt(sin, k, half_dim);
    StoreAt(Sub(Mul(a, c), Mul(b, s)), head, k, half_dim);
    StoreAt(Add(Mul(b, c), Mul(a, s)), second, k, half_dim);
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
