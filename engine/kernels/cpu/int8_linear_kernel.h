// y = x Wᵀ with W in 8 bits and a scale per row, see int8_linear.h.
//
// A block of 16 output features is stored slice by slice, so that weights are
// read in one stream. Its integer sums over a slice are exact: which of them
// are computed together changes nothing. Four rows of x share the widened
// weights. Included only where a CpuKernels table is built.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/canonical_math.h"
#include "engine/kernels/cpu/cpu_kernels.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kInt8Rows = 4;  // of x that are multiplied together

// One slice of a row: up to 256 elements, zeros after the n-th.
inline void QuantizeSlice(const float* x, int64_t n, float qmax, int16_t* q,
                          float* scale) {
  Lanes16 max = Zero();
  Lanes16 finite = Zero();  // 0, or NaN after an infinity or NaN
  for (int64_t k = 0; k < n; k += kLanes) {
    const Lanes16 value = LoadAt(x, k, n);
    max = Max(Abs(value), max);
    finite = Fma(value, Zero(), finite);
  }
  const float largest = ReduceMax(max) + ReduceAdd(finite);
  for (int k = 0; k < kSliceInputs; ++k) q[k] = 0;
  *scale = largest != largest ? largest : 0.0f;
  if (!(largest >= 0x1p-100f)) return;
  *scale = largest / qmax;
  // Adding it leaves the integer in the low bits, in two's complement.
  const Lanes16 magic = Set1(0x1.8p23f);
  const Lanes16 inverse = Set1(qmax / largest);
  for (int64_t k = 0; k < n; k += kLanes) {
    float rounded[kLanes];
    Store(Add(Mul(LoadAt(x, k, n), inverse), magic), rounded);
    for (int i = 0; i < kLanes; ++i) {
      q[k + i] = static_cast<int16_t>(
          static_cast<uint16_t>(__builtin_bit_cast(uint32_t, rounded[i])));
    }
  }
}

inline void QuantizeRow(const float* x, int64_t n, float qmax, int16_t* q,
                        float* scales) {
  for (int64_t k = 0; k < n; k += kSliceInputs) {
    QuantizeSlice(x + k, n - k < kSliceInputs ? n - k : int64_t{kSliceInputs},
                  qmax, q + k, scales + k / kSliceInputs);
  }
}

#if BINARYMOS_CPU_AVX2

// out[i] = the sum of the eight integers of sums[i].
inline __m256i SumEach(const __m256i sums[8]) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]),
                                      _mm256_hadd_epi32(sums[2], sums[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[4], sums[5]),
                                      _mm256_hadd_epi32(sums[6], sums[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                          _mm256_permute2x128_si256(a, b, 0x31));
}

// sums[r * outs + o] = Σ q[r][k] w[o][k] over one slice, rows * outs = 8.
template <int rows, int outs>
inline void SliceSums(const int16_t* q, int64_t q_stride, const int8_t* w,
                      int32_t sums[8]) {
  static_assert(rows * outs == 8);
  __m256i acc[rows * outs];
  for (__m256i& each : acc) each = _mm256_setzero_si256();
  for (int k = 0; k < kSliceInputs; k += 16) {
    __m256i wide[outs];
    for (int o = 0; o < outs; ++o) {
      wide[o] = _mm256_cvtepi8_epi16(_mm_load_si128(
          reinterpret_cast<const __m128i*>(w + o * kSliceInputs + k)));
    }
    for (int r = 0; r < rows; ++r) {
      const __m256i x = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(q + r * q_stride + k));
      for (int o = 0; o < outs; ++o) {
        acc[r * outs + o] =
            _mm256_add_epi32(acc[r * outs + o], _mm256_madd_epi16(x, wide[o]));
      }
    }
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), SumEach(acc));
}

#else  // portable

template <int rows, int outs>
inline void SliceSums(const int16_t* q, int64_t q_stride, const int8_t* w,
                      int32_t sums[8]) {
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < outs; ++o) {
      int32_t sum = 0;
      for (int k = 0; k < kSliceInputs; ++k) {
        sum += q[r * q_stride + k] * w[o * kSliceInputs + k];
      }
      sums[r * outs + o] = sum;
    }
  }
}

#endif  // BINARYMOS_CPU_AVX2

// The block's outputs for `rows` rows of x from `row` on, 1 or kInt8Rows.
template <int rows>
inline void RunInt8Rows(const Int8LinearTile& tile, int64_t row) {
  constexpr int kOuts = 8 / rows;  // computed together
  const int64_t stride = tile.num_slices * kSliceInputs;
  const int16_t* q = tile.q + row * stride;
  const float* scales = tile.scales + row * tile.num_slices;
  Lanes16 totals[rows];
  for (Lanes16& total : totals) total = Zero();
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t end = GroupBegin(group + 1, tile.num_slices);
    Lanes16 sums[rows];
    for (Lanes16& sum : sums) sum = Zero();
    for (int64_t s = GroupBegin(group, tile.num_slices); s < end; ++s) {
      const int8_t* w = tile.weight + s * kInt8BlockOuts * kSliceInputs;
      float slice_sums[rows][kInt8BlockOuts];
      for (int o = 0; o < kInt8BlockOuts; o += kOuts) {
        int32_t exact[8];
        SliceSums<rows, kOuts>(q + s * kSliceInputs, stride,
                               w + o * kSliceInputs, exact);
        for (int i = 0; i < 8; ++i) {
          slice_sums[i / kOuts][o + i % kOuts] = static_cast<float>(exact[i]);
        }
      }
      for (int r = 0; r < rows; ++r) {
        sums[r] = Fma(Load(slice_sums[r]),
                      Set1(scales[r * tile.num_slices + s]), sums[r]);
      }
    }
    for (int r = 0; r < rows; ++r) totals[r] = Add(totals[r], sums[r]);
  }
  for (int r = 0; r < rows; ++r) {
    float* y = tile.y + (row + r) * tile.y_stride;
    StoreAt(Mul(totals[r], Load(tile.weight_scales)), y, 0, tile.outs);
  }
}

inline void RunInt8Linear(const Int8LinearTile& tile) {
  static_assert(kInt8BlockOuts == kLanes);
  int64_t row = 0;
  for (; row + kInt8Rows <= tile.rows; row += kInt8Rows) {
    RunInt8Rows<kInt8Rows>(tile, row);
  }
  for (; row < tile.rows; ++row) RunInt8Rows<1>(tile, row);
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
