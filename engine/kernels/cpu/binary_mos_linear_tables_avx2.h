// The same as binary_mos_linear_tables.h for AVX2 and what includes it.
// Included by the .cc files compiled for those.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "engine/kernels/cpu/binary_mos_linear_kernels.h"
#include "engine/kernels/cpu/canonical_math.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

struct Avx2Tables {
  static void Quantize(const float u[kSliceInputs], float inverse,
                       int16_t q[kSliceInputs]) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const auto eight = [&](int i) {
      return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(u + i), factor));
    };
    for (int i = 0; i < kSliceInputs; i += 16) {
      Store(_mm256_permute4x64_epi64(_mm256_packs_epi32(eight(i), eight(i + 8)),
                                     _MM_SHUFFLE(3, 1, 2, 0)),
            q + i);
    }
  }

  static void GroupSums(const int16_t q[kSliceInputs],
                        int32_t neg[kSliceGroups], int32_t abs[kSliceGroups]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i zero = _mm256_setzero_si256();
    // Sums of four from 32 values, in order.
    const auto fours = [&](__m256i a, __m256i b) {
      return _mm256_permute4x64_epi64(
          _mm256_hadd_epi32(_mm256_madd_epi16(a, ones),
                            _mm256_madd_epi16(b, ones)),
          _MM_SHUFFLE(3, 1, 2, 0));
    };
    for (int i = 0; i < kSliceGroups; i += 8) {
      const __m256i a = Load(q + 4 * i);
      const __m256i b = Load(q + 4 * i + 16);
      Store(fours(_mm256_abs_epi16(a), _mm256_abs_epi16(b)), abs + i);
      Store(_mm256_sub_epi32(zero, fours(_mm256_min_epi16(a, zero),
                                         _mm256_min_epi16(b, zero))),
            neg + i);
    }
  }

  static void BuildTable(const int16_t q[kSliceInputs],
                         const int32_t neg[kSliceGroups], int digits,
                         uint8_t table[kTableBytes]) {
    // The bits of the entries in pairs: 0 to 3 and 8 to 11 of a table in one
    // vector, 4 to 7 and 12 to 15 in the other, so that packing the two gives
    // words in order.
    const __m256i bits01 = _mm256_setr_epi32(0, 1, 1 << 16, 1 << 16 | 1, 0, 1,
                                             1 << 16, 1 << 16 | 1);
    const __m256i bits23_front =
        _mm256_setr_epi32(0, 0, 0, 0, 1 << 16, 1 << 16, 1 << 16, 1 << 16);
    const __m256i bits23_back =
        _mm256_or_si256(bits23_front, _mm256_set1_epi32(1));
    for (int i = 0; i < kSliceGroups; ++i, q += 4) {
      const __m256i q23 = BroadcastTwo(q + 2);
      const __m256i t01 =
          _mm256_add_epi32(_mm256_set1_epi32(neg[i]),
                           _mm256_madd_epi16(BroadcastTwo(q), bits01));
      const __m256i front =
          _mm256_add_epi32(t01, _mm256_madd_epi16(q23, bits23_front));
      const __m256i back =
          _mm256_add_epi32(t01, _mm256_madd_epi16(q23, bits23_back));
      if (digits == 2) {
        StoreTwoDigits(_mm256_packus_epi32(front, back), table);
      } else {
        StoreThreeDigits(front, back, table);
      }
      table += 16 * digits;
    }
  }

 private:
  static __m256i Load(const void* p) {
    return _mm256_load_si256(static_cast<const __m256i*>(p));
  }
  static void Store(__m256i v, void* p) {
    _mm256_store_si256(static_cast<__m256i*>(p), v);
  }

  static __m256i BroadcastTwo(const int16_t* q) {
    int32_t two;
    __builtin_memcpy(&two, q, sizeof(two));
    return _mm256_set1_epi32(two);
  }

  static void StoreTwoDigits(__m256i t, uint8_t* table) {
    const __m256i digits = _mm256_packus_epi16(
        _mm256_and_si256(t, _mm256_set1_epi16((1 << kTwoLowBits) - 1)),
        _mm256_srli_epi16(t, kTwoLowBits));
    Store(_mm256_permute4x64_epi64(digits, _MM_SHUFFLE(3, 1, 2, 0)), table);
  }

  static void StoreThreeDigits(__m256i front, __m256i back, uint8_t* table) {
    const __m256i mask = _mm256_set1_epi32((1 << kThreeLowBits) - 1);
    for (int d = 0; d < 3; ++d, table += 16) {
      const __m256i digits = _mm256_packus_epi32(_mm256_and_si256(front, mask),
                                                 _mm256_and_si256(back, mask));
      _mm_store_si128(reinterpret_cast<__m128i*>(table),
                      _mm_packus_epi16(_mm256_castsi256_si128(digits),
                                       _mm256_extracti128_si256(digits, 1)));
      front = _mm256_srli_epi32(front, kThreeLowBits);
      back = _mm256_srli_epi32(back, kThreeLowBits);
    }
  }
};

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
