// Compiled with -mavx2 -mfma -mf16c; see lanes16.h for what that
// forbids.
#include <immintrin.h>

#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/binary_mos_linear_lookup.h"
#include "engine/kernels/cpu/binary_mos_linear_tables_avx2.h"

namespace binarymos::cpu {
namespace {

struct Avx2Vector {
  using Bytes = __m256i;
  static constexpr int kRows = 32;
  static constexpr int kTwoVectors = 2;
  static constexpr int kThreeVectors = 1;
  static constexpr bool kReload = true;

  static Bytes Zero() { return _mm256_setzero_si256(); }
  static Bytes Load(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void Store(Bytes bytes, uint8_t* p) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), bytes);
  }
  static Bytes Table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Bytes LookUp(Bytes table, Bytes index) {
    return _mm256_shuffle_epi8(table, index);
  }
  static Bytes LowNibbles(Bytes bytes) {
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
  }
  static Bytes HighNibbles(Bytes bytes) {
    return LowNibbles(_mm256_srli_epi16(bytes, 4));
  }
  static Bytes AddBytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
  static Bytes AddWords(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
  // Not a shift: those share their ports with the shuffles.
  static Bytes AddOddBytes(Bytes words, Bytes bytes) {
    return _mm256_add_epi16(
        words, _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0100)));
  }
  static Bytes SubShifted(Bytes mixed, Bytes odd) {
    return _mm256_sub_epi16(mixed, _mm256_slli_epi16(odd, 8));
  }
  static void Keep(Bytes& a, Bytes& b) { asm("" : "+x"(a), "+x"(b)); }

  template <int kDigits>
  static void AddSums(const Bytes words[kDigits], int32_t sum_abs, float scale,
                      float* sums) {
    constexpr int kBits = kDigits == 2 ? kTwoLowBits : kThreeLowBits;
    const __m256i weights = _mm256_set1_epi32(2 | (2 << kBits) << 16);
    __m256i low =
        _mm256_madd_epi16(_mm256_unpacklo_epi16(words[0], words[1]), weights);
    __m256i high =
        _mm256_madd_epi16(_mm256_unpackhi_epi16(words[0], words[1]), weights);
    if constexpr (kDigits == 3) {
      constexpr int kShift = 2 * kBits + 1;
      low = _mm256_add_epi32(
          low,
          _mm256_slli_epi32(_mm256_unpacklo_epi16(words[2], Zero()), kShift));
      high = _mm256_add_epi32(
          high,
          _mm256_slli_epi32(_mm256_unpackhi_epi16(words[2], Zero()), kShift));
    }
    AddEight(low, sum_abs, scale, sums);
    AddEight(high, sum_abs, scale, sums + 8);
  }

  static int RowOffset(int vector) { return vector * kRows; }
  static void Prefetch(const uint8_t* p) { _mm_prefetch(p, _MM_HINT_T0); }

 private:
  static void AddEight(__m256i twice_t, int32_t sum_abs, float scale,
                       float* sums) {
    const __m256 s = _mm256_cvtepi32_ps(
        _mm256_sub_epi32(twice_t, _mm256_set1_epi32(sum_abs)));
    _mm256_store_ps(
        sums, _mm256_fmadd_ps(s, _mm256_set1_ps(scale), _mm256_load_ps(sums)));
  }
};

using Avx2Core = LookUpCore<Avx2Tables, SliceLookUp<Avx2Vector>>;

}  // namespace

const BinaryMosKernels& Avx2BinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<Avx2Core>,
                                                &Multiply<Avx2Core>};
  return kKernels;
}

}  // namespace binarymos::cpu
