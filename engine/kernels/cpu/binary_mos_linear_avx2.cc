// Compiled with -mavx2 -mfma -mf16c; see canonical_math.h for what that
// forbids.
//
// Per pair (eight inputs) and 32 rows with two digits: four shuffles, two byte
// adds, and per digit a word add of the bytes as they are (even + 256 * odd,
// wrapping), a vpmaddubsw that isolates the odd bytes, and an add of those.
#include <immintrin.h>

#include "engine/kernels/cpu/binary_mos_linear_inl.h"

namespace binarymos::cpu {
namespace {

// How far ahead signs are fetched: the next slice of the strip. Half and double
// of it were 5 to 10 % slower with one token.
constexpr int kPrefetchBytes = kStripBlocks * kBlockBytes;
constexpr int kVectorRows = 32;

inline __m256i LoadVector(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
inline void StoreVector(__m256i v, void* p) {
  _mm256_store_si256(static_cast<__m256i*>(p), v);
}
inline __m256i BroadcastTable(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(
      _mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256i LowNibbles(__m256i bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
inline __m256i HighNibbles(__m256i bytes) {
  return LowNibbles(_mm256_srli_epi16(bytes, 4));
}

inline void Prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

// The nibbles of one slice as bytes: [block][pair][half][row position, 64].
void ExpandNibbles(const uint8_t* sign, int blocks, uint8_t* nibbles) {
  for (int i = 0; i < blocks * kBlockBytes; i += kBlockRows) {
    Prefetch(sign + i + kPrefetchBytes);
    for (int row = 0; row < kBlockRows; row += kVectorRows) {
      const __m256i bytes = LoadVector(sign + i + row);
      StoreVector(LowNibbles(bytes), nibbles + 2 * i + row);
      StoreVector(HighNibbles(bytes), nibbles + 2 * i + kBlockRows + row);
    }
  }
}

// The sums of one digit over a slice: 32 rows as 2 x 16 words.
struct DigitSums {
  __m256i mixed = _mm256_setzero_si256();  // even + 256 * odd, modulo 2^16
  __m256i odd = _mm256_setzero_si256();

  void Add(__m256i bytes) {
    mixed = _mm256_add_epi16(mixed, bytes);
    odd = _mm256_add_epi16(
        odd, _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0100)));
    // Pins both to registers; else GCC 12 moves them about (1.27x slower).
    asm("" : "+x"(mixed), "+x"(odd));
  }
  __m256i even() const {
    return _mm256_sub_epi16(mixed, _mm256_slli_epi16(odd, 8));
  }
};

// Eight rows: sums = fma(2 t - sum_abs, scale, sums).
inline void AddEight(__m256i twice_t, __m256i sum_abs, __m256 scale,
                     float* sums) {
  const __m256 s = _mm256_cvtepi32_ps(_mm256_sub_epi32(twice_t, sum_abs));
  _mm256_store_ps(sums, _mm256_fmadd_ps(s, scale, _mm256_load_ps(sums)));
}

// 16 rows of words per digit, interleaved as RowPosition() expects: first the
// low halves of both 128-bit lanes, then the high ones.
template <int kDigits>
inline void AddSixteen(const __m256i words[kDigits], __m256i sum_abs,
                       __m256 scale, float* sums) {
  constexpr int kBits = kDigits == 2 ? kTwoLowBits : kThreeLowBits;
  const __m256i weights = _mm256_set1_epi32(2 | (2 << kBits) << 16);
  __m256i low =
      _mm256_madd_epi16(_mm256_unpacklo_epi16(words[0], words[1]), weights);
  __m256i high =
      _mm256_madd_epi16(_mm256_unpackhi_epi16(words[0], words[1]), weights);
  if constexpr (kDigits == 3) {
    const __m256i zero = _mm256_setzero_si256();
    constexpr int kShift = 2 * kBits + 1;
    low = _mm256_add_epi32(
        low, _mm256_slli_epi32(_mm256_unpacklo_epi16(words[2], zero), kShift));
    high = _mm256_add_epi32(
        high, _mm256_slli_epi32(_mm256_unpackhi_epi16(words[2], zero), kShift));
  }
  AddEight(low, sum_abs, scale, sums);
  AddEight(high, sum_abs, scale, sums + 8);
}

// The nibbles of 32 rows for one half (four inputs) of a pair; in the expanded
// form if kExpanded.
template <bool kExpanded>
inline __m256i LoadIndex(const uint8_t* signs, int half) {
  if constexpr (kExpanded) return LoadVector(signs + half * kBlockRows);
  const __m256i packed = LoadVector(signs + half / 2 * kBlockRows);
  return half % 2 == 0 ? LowNibbles(packed) : HighNibbles(packed);
}

// One slice of one token for kVectors times 32 rows of a block. `signs` are
// packed signs or, if kExpanded, ExpandNibbles of them.
template <int kDigits, int kVectors, bool kExpanded, bool kWide>
inline void AddRows(const uint8_t* signs, const BinaryMosSlice& slice,
                    const uint8_t* table, float* sums) {
  // Pairs whose digits fit a byte together: 4 * 63 for three digits.
  constexpr int kPairs = kDigits == 2 ? 1 : 2;
  constexpr int kPairBytes = kExpanded ? 2 * kBlockRows : kBlockRows;
  DigitSums digits[kVectors][kDigits];
  for (int pair = 0; pair < kSlicePairs; pair += kPairs) {
    const uint8_t* p = signs + pair * kPairBytes;
    const uint8_t* t = table + pair * 2 * kDigits * 16;
    Prefetch(t + kTableBytes);  // the next token's, or slice's
    if constexpr (!kExpanded) Prefetch(p + kPrefetchBytes);
    for (int v = 0; v < kVectors; ++v) {
      // Not enough registers: load the tables again, keep the sums.
      if constexpr (!kExpanded) asm volatile("" ::: "memory");
      __m256i bytes[kDigits];
      for (int half = 0; half < 2 * kPairs; ++half) {
        const __m256i index = LoadIndex<kExpanded>(p + v * kVectorRows, half);
        for (int d = 0; d < kDigits; ++d) {
          const __m256i value = _mm256_shuffle_epi8(
              BroadcastTable(t + (half * kDigits + d) * 16), index);
          if (half == 0) {
            bytes[d] = value;
          } else if (kWide && d + 1 == kDigits) {
            digits[v][d].Add(value);
          } else {
            bytes[d] = _mm256_add_epi8(bytes[d], value);
          }
        }
      }
      for (int d = 0; d < kDigits; ++d) digits[v][d].Add(bytes[d]);
    }
  }

  const __m256i sum_abs = _mm256_set1_epi32(slice.sum_abs);
  const __m256 scale = _mm256_set1_ps(slice.scale);
  for (int v = 0; v < kVectors; ++v, sums += kVectorRows) {
    __m256i even[kDigits];
    __m256i odd[kDigits];
    for (int d = 0; d < kDigits; ++d) {
      even[d] = digits[v][d].even();
      odd[d] = digits[v][d].odd;
    }
    AddSixteen<kDigits>(even, sum_abs, scale, sums);
    AddSixteen<kDigits>(odd, sum_abs, scale, sums + 16);
  }
}

// As AddRows, for all rows of a strip and whatever the slice is.
template <bool kExpanded>
inline void AddStrip(const uint8_t* signs, int blocks,
                     const BinaryMosSlice& slice, const uint8_t* table,
                     float* sums) {
  constexpr int kBytes = kExpanded ? 2 * kBlockBytes : kBlockBytes;
  if (slice.scale == 0.0f) return;
  if (slice.digits == 0) {  // not finite, no table
    for (int r = 0; r < blocks * kBlockRows; ++r) sums[r] += slice.scale;
    return;
  }
  for (int b = 0; b < blocks; ++b, signs += kBytes, sums += kBlockRows) {
    if (slice.digits == 3) {
      AddRows<3, 1, kExpanded, false>(signs, slice, table, sums);
      AddRows<3, 1, kExpanded, false>(signs + kVectorRows, slice, table,
                                      sums + kVectorRows);
    } else if (slice.wide) {
      AddRows<2, 2, kExpanded, true>(signs, slice, table, sums);
    } else {
      AddRows<2, 2, kExpanded, false>(signs, slice, table, sums);
    }
  }
}

struct Avx2Core {
  static void Quantize(const float u[kSliceInputs], float inverse,
                       int16_t q[kSliceInputs]) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const auto eight = [&](int i) {
      return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(u + i), factor));
    };
    for (int i = 0; i < kSliceInputs; i += 16) {
      StoreVector(
          _mm256_permute4x64_epi64(_mm256_packs_epi32(eight(i), eight(i + 8)),
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
      const __m256i a = LoadVector(q + 4 * i);
      const __m256i b = LoadVector(q + 4 * i + 16);
      StoreVector(fours(_mm256_abs_epi16(a), _mm256_abs_epi16(b)), abs + i);
      StoreVector(_mm256_sub_epi32(zero, fours(_mm256_min_epi16(a, zero),
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

  static void AddSlice(const uint8_t* sign, int blocks,
                       const BinaryMosSlice* slices, const uint8_t* tables,
                       int64_t tokens, float (*sums)[kStripRows]) {
    if (tokens == 1) {
      return AddStrip<false>(sign, blocks, slices[0], tables, sums[0]);
    }
    alignas(64) uint8_t nibbles[kStripBlocks * 2 * kBlockBytes];
    ExpandNibbles(sign, blocks, nibbles);
    for (int64_t t = 0; t < tokens; ++t) {
      AddStrip<true>(nibbles, blocks, slices[t], tables + t * kTableBytes,
                     sums[t]);
    }
  }

 private:
  static __m256i BroadcastTwo(const int16_t* q) {
    int32_t two;
    __builtin_memcpy(&two, q, sizeof(two));
    return _mm256_set1_epi32(two);
  }

  static void StoreTwoDigits(__m256i t, uint8_t* table) {
    const __m256i digits = _mm256_packus_epi16(
        _mm256_and_si256(t, _mm256_set1_epi16((1 << kTwoLowBits) - 1)),
        _mm256_srli_epi16(t, kTwoLowBits));
    StoreVector(_mm256_permute4x64_epi64(digits, _MM_SHUFFLE(3, 1, 2, 0)),
                table);
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

}  // namespace

const BinaryMosKernels& Avx2BinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<Avx2Core>,
                                                &Multiply<Avx2Core>};
  return kKernels;
}

}  // namespace binarymos::cpu
