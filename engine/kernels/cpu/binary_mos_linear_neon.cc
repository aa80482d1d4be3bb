// For AArch64, where NEON is always there. Run under an emulator only: the
// results are tested, the speed is not known.
#include <arm_neon.h>

#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/binary_mos_linear_lookup.h"
#include "engine/kernels/cpu/binary_mos_linear_tables.h"

namespace binarymos::cpu {
namespace {

struct NeonVector {
  using Bytes = uint8x16_t;
  static constexpr int kRows = 16;
  static constexpr int kTwoVectors = 4;
  static constexpr int kThreeVectors = 2;
  static constexpr bool kReload = false;

  static Bytes Zero() { return vdupq_n_u8(0); }
  static Bytes Load(const uint8_t* p) { return vld1q_u8(p); }
  static void Store(Bytes bytes, uint8_t* p) { vst1q_u8(p, bytes); }
  static Bytes Table(const uint8_t* p) { return vld1q_u8(p); }
  static Bytes LookUp(Bytes table, Bytes index) {
    return vqtbl1q_u8(table, index);
  }
  static Bytes LowNibbles(Bytes bytes) {
    return vandq_u8(bytes, vdupq_n_u8(15));
  }
  static Bytes HighNibbles(Bytes bytes) { return vshrq_n_u8(bytes, 4); }
  static Bytes AddBytes(Bytes a, Bytes b) { return vaddq_u8(a, b); }
  static Bytes AddWords(Bytes a, Bytes b) {
    return vreinterpretq_u8_u16(vaddq_u16(Words(a), Words(b)));
  }
  static Bytes AddOddBytes(Bytes words, Bytes bytes) {
    return vreinterpretq_u8_u16(vsraq_n_u16(Words(words), Words(bytes), 8));
  }
  static Bytes SubShifted(Bytes mixed, Bytes odd) {
    return vreinterpretq_u8_u16(
        vsubq_u16(Words(mixed), vshlq_n_u16(Words(odd), 8)));
  }
  static void Keep(Bytes& a, Bytes& b) { asm("" : "+w"(a), "+w"(b)); }

  template <int kDigits>
  static void AddSums(const Bytes words[kDigits], int32_t sum_abs, float scale,
                      float* sums) {
    constexpr int kBits = kDigits == 2 ? kTwoLowBits : kThreeLowBits;
    uint32x4_t low = vmovl_u16(vget_low_u16(Words(words[0])));
    uint32x4_t high = vmovl_u16(vget_high_u16(Words(words[0])));
    for (int d = 1; d < kDigits; ++d) {
      const uint32x4_t shift = vdupq_n_u32(1u << (d * kBits));
      low = vmlaq_u32(low, vmovl_u16(vget_low_u16(Words(words[d]))), shift);
      high = vmlaq_u32(high, vmovl_u16(vget_high_u16(Words(words[d]))), shift);
    }
    AddFour(low, sum_abs, scale, sums);
    AddFour(high, sum_abs, scale, sums + 8);
  }

  // Halves of a vector of 32 rows interleave by fours.
  static int RowOffset(int vector) { return vector / 2 * 32 + vector % 2 * 4; }
  static void Prefetch(const uint8_t* p) { __builtin_prefetch(p); }

 private:
  static uint16x8_t Words(Bytes bytes) { return vreinterpretq_u16_u8(bytes); }

  static void AddFour(uint32x4_t t, int32_t sum_abs, float scale, float* sums) {
    const int32x4_t s = vsubq_s32(vreinterpretq_s32_u32(vshlq_n_u32(t, 1)),
                                  vdupq_n_s32(sum_abs));
    vst1q_f32(sums, vfmaq_n_f32(vld1q_f32(sums), vcvtq_f32_s32(s), scale));
  }
};

using NeonCore = LookUpCore<Tables, SliceLookUp<NeonVector>>;

}  // namespace

const BinaryMosKernels& NeonBinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<NeonCore>,
                                                &Multiply<NeonCore>};
  return kKernels;
}

}  // namespace binarymos::cpu
