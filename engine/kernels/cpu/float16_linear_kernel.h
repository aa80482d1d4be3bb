// y = x Wᵀ + bias with W in f16, [out, in] row-major.
//
// Each y is one Dot(): its order over K does not depend on what is computed
// beside it. Four rows of x share a converted weight vector; a single row takes
// four rows of W at a time instead, so that eight fma chains are in flight
// either way. The former go through K in blocks that fit the caches.
// Included only where a CpuKernels table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"
#include "engine/kernels/cpu/cpu_kernels.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kDotBlock = 4;

// Adds a[i * a_stride + k] * b[k], k in [0, n), to the lanes of totals[i].
template <typename A, typename B>
inline void AddProducts(const A* a, int64_t a_stride, const B* b, int64_t n,
                        Lanes16 totals[kDotBlock]) {
  Lanes16 sums[kDotBlock] = {totals[0], totals[1], totals[2], totals[3]};
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
  for (int i = 0; i < kDotBlock; ++i) totals[i] = sums[i];
}

// out[i] = Dot(a + i * a_stride, b), four at once.
template <typename A, typename B>
inline void DotBlock(const A* a, int64_t a_stride, const B* b, int64_t n,
                     float out[kDotBlock]) {
  Lanes16 sums[kDotBlock] = {Zero(), Zero(), Zero(), Zero()};
  AddProducts(a, a_stride, b, n, sums);
  ReduceAdd4(sums, out);
}

// Inputs of a block, of which four rows of x are 16 KiB, and rows of a block,
// of which x and the sums are 128 and 64 KiB: with the weights of a tile, what
// the first- and second-level caches hold.
inline constexpr int64_t kBlockInputs = 1024;
inline constexpr int64_t kBlockFours = 8;  // of rows

inline void StoreOutput(const Float16LinearTile& tile, int64_t row, int64_t out,
                        float sum) {
  if (tile.bias != nullptr) sum += ToFloat(tile.bias[out]);
  float& y = tile.y[row * tile.y_stride + out];
  y = tile.accumulate ? y + sum : sum;
}

// The tile's outputs for the rows [row, row + 4 * fours).
inline void RunFours(const Float16LinearTile& tile, int64_t row,
                     int64_t fours) {
  const int64_t in = tile.in;
  Lanes16 sums[kBlockFours][kFloat16TileOuts][kDotBlock];
  for (int64_t four = 0; four < fours; ++four) {
    for (int64_t out = 0; out < tile.outs; ++out) {
      for (Lanes16& sum : sums[four][out]) sum = Zero();
    }
  }
  // Side by side: rows a power of two apart would share the caches' sets.
  float x[kBlockFours][kDotBlock][kBlockInputs];
  for (int64_t k = 0; k < in; k += kBlockInputs) {
    const int64_t n = in - k < kBlockInputs ? in - k : kBlockInputs;
    for (int64_t i = 0; i < fours * kDotBlock; ++i) {
      const float* from = tile.x + (row + i) * in + k;
      float* to = x[0][0] + i * kBlockInputs;
      for (int64_t j = 0; j < n; j += kLanes) {
        StoreAt(LoadAt(from, j, n), to, j, n);
      }
    }
    for (int64_t four = 0; four < fours; ++four) {
      for (int64_t out = 0; out < tile.outs; ++out) {
        AddProducts(x[four][0], kBlockInputs, tile.weight + out * in + k, n,
                    sums[four][out]);
      }
    }
  }
  for (int64_t four = 0; four < fours; ++four) {
    for (int64_t out = 0; out < tile.outs; ++out) {
      float totals[kDotBlock];
      ReduceAdd4(sums[four][out], totals);
      for (int i = 0; i < kDotBlock; ++i) {
        StoreOutput(tile, row + four * kDotBlock + i, out, totals[i]);
      }
    }
  }
}

inline void RunFloat16Linear(const Float16LinearTile& tile) {
  const int64_t in = tile.in;
  float sums[kDotBlock];
  int64_t row = 0;
  while (row + kDotBlock <= tile.rows) {
    const int64_t left = (tile.rows - row) / kDotBlock;
    const int64_t fours = left < kBlockFours ? left : kBlockFours;
    RunFours(tile, row, fours);
    row += fours * kDotBlock;
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
