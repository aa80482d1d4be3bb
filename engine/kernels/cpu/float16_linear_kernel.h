// y = x Wᵀ + bias with W in f16, [out, in] row-major.
//
// Each y is one Dot(): its order over K does not depend on what is computed
// beside it. Four rows of x share a converted weight vector; a single row takes
// four rows of W at a time instead, so that eight fma chains are in flight
// either way. Reads 2 * in bytes of weights per output feature and four rows.
// Included only where a CpuKernels table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"
#include "engine/kernels/cpu/cpu_kernels.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kDotBlock = 4;

// out[i] = Dot(a + i * a_stride, b), four at once.
template <typename A, typename B>
inline void DotBlock(const A* a, int64_t a_stride, const B* b, int64_t n,
                     float out[kDotBlock]) {
  Lanes16 sums[kDotBlock] = {Zero(), Zero(), Zero(), Zero()};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    const Lanes16 shared = Load(b + k);
    for (int i = 0; i < kDotBlock; ++i) {
      sums[i] = Fma(Load(a + i * a_stride + k), shared, sums[i]);
    }
  }
  if (k < n) {
    const Lanes16 shared = LoadPartial(b + k, n - k);
    for (int i = 0; i < kDotBlock; ++i) {
      sums[i] = Fma(LoadPartial(a + i * a_stride + k, n - k), shared, sums[i]);
    }
  }
  ReduceAdd4(sums, out);
}

inline void StoreOutput(const Float16LinearTile& tile, int64_t row, int64_t out,
                        float sum) {
  if (tile.bias != nullptr) sum += ToFloat(tile.bias[out]);
  float& y = tile.y[row * tile.y_stride + out];
  y = tile.accumulate ? y + sum : sum;
}

inline void RunFloat16Linear(const Float16LinearTile& tile) {
  const int64_t in = tile.in;
  float sums[kDotBlock];
  int64_t row = 0;
  for (; row + kDotBlock <= tile.rows; row += kDotBlock) {
    for (int64_t out = 0; out < tile.outs; ++out) {
      DotBlock(tile.x + row * in, in, tile.weight + out * in, in, sums);
      for (int i = 0; i < kDotBlock; ++i) {
        StoreOutput(tile, row + i, out, sums[i]);
      }
    }
  }
  for (; row < tile.rows; ++row) {
    const float* x = tile.x + row * in;
    int64_t out = 0;
    for (; out + kDotBlock <= tile.outs; out += kDotBlock) {
      DotBlock(tile.weight + out * in, in, x, in, sums);
      for (int i = 0; i < kDotBlock; ++i) {
        StoreOutput(tile, row, out + i, sums[i]);
      }
    }
    for (; out < tile.outs; ++out) {
      StoreOutput(tile, row, out, Dot(tile.weight + out * in, x, in));
    }
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
