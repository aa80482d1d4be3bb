// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq and the flags of
// AVX2; see lanes16.h for what that forbids.
//
// A block's 64 rows are one vector. Look-ups among 64 bytes (VBMI) would want
// groups of six inputs, which slices of 256 do not divide into. Counting bits
// (VPOPCNTDQ) takes a plane for each of 14 bits: 42 instructions for 512
// weights, against about 14 here.
#include <immintrin.h>

#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/binary_mos_linear_lookup.h"
#include "engine/kernels/cpu/binary_mos_linear_tables_avx2.h"

namespace binarymos::cpu {
namespace {

struct Avx512Vector {
  using Bytes = __m512i;
  static constexpr int kRows = 64;
  static constexpr int kTwoVectors = 1;
  static constexpr int kThreeVectors = 1;
  static constexpr bool kReload = false;

  static Bytes Zero() { return _mm512_setzero_si512(); }
  static Bytes Load(const uint8_t* p) { return _mm512_load_si512(p); }
  static void Store(Bytes bytes, uint8_t* p) { _mm512_store_si512(p, bytes); }
  static Bytes Table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(
        _mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Bytes LookUp(Bytes table, Bytes index) {
    return _mm512_shuffle_epi8(table, index);
  }
  static Bytes LowNibbles(Bytes bytes) {
    return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
  }
  static Bytes HighNibbles(Bytes bytes) {
    return LowNibbles(_mm512_srli_epi16(bytes, 4));
  }
  static Bytes AddBytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
  static Bytes AddWords(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
  static Bytes AddOddBytes(Bytes words, Bytes bytes) {
    return _mm512_add_epi16(words, _mm512_srli_epi16(bytes, 8));
  }
  static Bytes SubShifted(Bytes mixed, Bytes odd) {
    return _mm512_sub_epi16(mixed, _mm512_slli_epi16(odd, 8));
  }
  static void Keep(Bytes& a, Bytes& b) { asm("" : "+v"(a), "+v"(b)); }

  template <int kDigits>
  static void AddSums(const Bytes words[kDigits], int32_t sum_abs, float scale,
                      float* sums) {
    constexpr int kBits = kDigits == 2 ? kTwoLowBits : kThreeLowBits;
    const Bytes weights = _mm512_set1_epi32(2 | (2 << kBits) << 16);
    Bytes low =
        _mm512_madd_epi16(_mm512_unpacklo_epi16(words[0], words[1]), weights);
    Bytes high =
        _mm512_madd_epi16(_mm512_unpackhi_epi16(words[0], words[1]), weights);
    if constexpr (kDigits == 3) {
      constexpr int kShift = 2 * kBits + 1;
      low = _mm512_add_epi32(
          low,
          _mm512_slli_epi32(_mm512_unpacklo_epi16(words[2], Zero()), kShift));
      high = _mm512_add_epi32(
          high,
          _mm512_slli_epi32(_mm512_unpackhi_epi16(words[2], Zero()), kShift));
    }
    AddSixteen(low, sum_abs, scale, sums);
    AddSixteen(high, sum_abs, scale, sums + 8);
  }

  static int RowOffset(int /*vector*/) { return 0; }
  static void Prefetch(const uint8_t* p) { _mm_prefetch(p, _MM_HINT_T0); }

 private:
  // Eight rows and the eight that are 32 later.
  static void AddSixteen(__m512i twice_t, int32_t sum_abs, float scale,
                         float* sums) {
    const __m512 s = _mm512_cvtepi32_ps(
        _mm512_sub_epi32(twice_t, _mm512_set1_epi32(sum_abs)));
    const __m512 before =
        _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(sums)),
                           _mm256_load_ps(sums + 32), 1);
    const __m512 after = _mm512_fmadd_ps(s, _mm512_set1_ps(scale), before);
    _mm256_store_ps(sums, _mm512_castps512_ps256(after));
    _mm256_store_ps(sums + 32, _mm512_extractf32x8_ps(after, 1));
  }
};

using Avx512Core = LookUpCore<Avx2Tables, SliceLookUp<Avx512Vector>>;

}  // namespace

const BinaryMosKernels& Avx512BinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<Avx512Core>,
                                                &Multiply<Avx512Core>};
  return kKernels;
}

}  // namespace binarymos::cpu
