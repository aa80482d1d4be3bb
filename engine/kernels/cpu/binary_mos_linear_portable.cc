#include "engine/kernels/cpu/binary_mos_linear_inl.h"
#include "engine/kernels/cpu/binary_mos_linear_lookup.h"
#include "engine/kernels/cpu/binary_mos_linear_tables.h"

namespace binarymos::cpu {
namespace {

struct PortableLookUp {
  static void AddSlice(const uint8_t* sign, int blocks,
                       const BinaryMosSlice* slices, const uint8_t* tables,
                       int64_t tokens, float (*sums)[kStripRows]) {
    for (int64_t t = 0; t < tokens; ++t, tables += kTableBytes) {
      const BinaryMosSlice& slice = slices[t];
      if (slice.scale == 0.0f) continue;
      int32_t looked_up[kStripRows] = {};
      // A slice that is not finite has no table; NaN * 0 is what it adds.
      if (slice.digits != 0) LookUp(sign, blocks, slice, tables, looked_up);
      for (int r = 0; r < blocks * kBlockRows; ++r) {
        const int i = r / kBlockRows * kBlockRows + RowPosition(r % kBlockRows);
        const int32_t sum = 2 * looked_up[i] - slice.sum_abs;
        sums[t][r] = Fma(static_cast<float>(sum), slice.scale, sums[t][r]);
      }
    }
  }

 private:
  static void LookUp(const uint8_t* sign, int blocks,
                     const BinaryMosSlice& slice, const uint8_t* table,
                     int32_t looked_up[kStripRows]) {
    for (int pair = 0; pair < kSlicePairs; ++pair) {
      int32_t t[2][16];
      for (int half = 0; half < 2; ++half, table += 16 * slice.digits) {
        for (int nibble = 0; nibble < 16; ++nibble) {
          t[half][nibble] = 0;
          for (int d = 0; d < slice.digits; ++d) {
            t[half][nibble] += table[16 * d + nibble]
                               << (d * Tables::LowBits(slice.digits));
          }
        }
      }
      for (int b = 0; b < blocks; ++b) {
        const uint8_t* bytes = sign + b * kBlockBytes + pair * kBlockRows;
        for (int i = 0; i < kBlockRows; ++i) {
          looked_up[b * kBlockRows + i] += t[0][bytes[i] & 15];
          looked_up[b * kBlockRows + i] += t[1][bytes[i] >> 4];
        }
      }
    }
  }
};

using PortableCore = LookUpCore<Tables, PortableLookUp>;

}  // namespace

const BinaryMosKernels& PortableBinaryMosKernels() {
  static constexpr BinaryMosKernels kKernels = {&Prepare<PortableCore>,
                                                &Multiply<PortableCore>};
  return kKernels;
}

}  // namespace binarymos::cpu
