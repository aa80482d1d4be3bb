// The tables of a core by look-ups (LookUpCore in binary_mos_linear_lookup.h),
// for any CPU:
//   Quantize()                          // of a `Core`
//   // neg[i], abs[i]: sum of max(-q, 0) and of |q| over group i.
//   GroupSums(q, neg, abs)
//   // The table of a slice, neg as above.
//   BuildTable(q, neg, digits, table)
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/binary_mos_linear_kernels.h"

namespace binarymos::cpu {

struct Tables {
  static void Quantize(const float u[kSliceInputs], float inverse,
                       int16_t q[kSliceInputs]) {
    // Adding it leaves the integer in the low bits, in two's complement.
    constexpr float kMagic = 0x1.8p23f;
    for (int i = 0; i < kSliceInputs; ++i) {
      const float rounded = u[i] * inverse + kMagic;
      q[i] = static_cast<int16_t>(
          static_cast<uint16_t>(__builtin_bit_cast(uint32_t, rounded)));
    }
  }

  static void GroupSums(const int16_t q[kSliceInputs],
                        int32_t neg[kSliceGroups], int32_t abs[kSliceGroups]) {
    for (int i = 0; i < kSliceGroups; ++i) {
      neg[i] = abs[i] = 0;
      for (int j = 4 * i; j < 4 * i + 4; ++j) {
        neg[i] += q[j] < 0 ? -q[j] : 0;
        abs[i] += q[j] < 0 ? -q[j] : q[j];
      }
    }
  }

  static void BuildTable(const int16_t q[kSliceInputs],
                         const int32_t neg[kSliceGroups], int digits,
                         uint8_t table[kTableBytes]) {
    const int bits = LowBits(digits);
    const int32_t mask = (1 << bits) - 1;
    for (int i = 0; i < kSliceGroups; ++i, table += 16 * digits) {
      for (int nibble = 0; nibble < 16; ++nibble) {
        int32_t t = neg[i];
        for (int j = 0; j < 4; ++j) t += (nibble >> j & 1) * q[4 * i + j];
        for (int d = 0; d < digits; ++d, t >>= bits) {
          const int32_t digit = d + 1 < digits ? t & mask : t;
          table[16 * d + nibble] = static_cast<uint8_t>(digit);
        }
      }
    }
  }

  static int LowBits(int digits) {
    return digits == 2 ? kTwoLowBits : kThreeLowBits;
  }
};

}  // namespace binarymos::cpu
