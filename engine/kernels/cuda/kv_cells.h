// Elements of a KV cache that the tensor core multiplies as halves, and how
// fragments of them come from shared memory.
//
// A load is LoadMatrices or LoadTransposed of rows that are positions: four
// matrices of 8 positions by 16 bytes. Of keys, matrices 0 and 1 are positions
// 0 to 7, 2 and 3 are 8 to 15; of values, 0 and 2 are positions 0 to 7. In f16
// the 16 by 32 bytes are one step of 16 dimensions. In e4m3 they are two, and a
// word holds four bytes: what a lane gets are not the dimensions that f16 has
// in its place, but which dimensions share a slot of the MMA is free, if only
// the other side agrees: queries lie in the order of SlotOf, and column c of
// the value's tile h is dimension DimensionOf(h, c).
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/half_mma.h"

namespace binarymos::cuda {

// The B operand of two tiles of 8 columns and a step of 16.
struct FragmentPair {
  HalfFragmentB tile[2];
};

template <typename Cell>
struct KvCells;

template <>
struct KvCells<uint16_t> {  // f16
  static constexpr int kStepsPerLoad = 1;

  // Where dimension d of a query stands among the 16 of its step.
  static BINARYMOS_DEVICE int SlotOf(int d) { return d; }
  static BINARYMOS_DEVICE int DimensionOf(int tile, int column) {
    return 8 * tile + column;
  }
  // Step `step` of a load. Columns are positions; tiles 8 of them each.
  static BINARYMOS_DEVICE FragmentPair Keys(const Words4& load, int /*step*/) {
    return {{{{load.v[0], load.v[1]}}, {{load.v[2], load.v[3]}}}};
  }
  // Columns are dimensions, the step is over positions.
  static BINARYMOS_DEVICE FragmentPair Values(const Words4& load,
                                              int /*step*/) {
    return Keys(load, 0);
  }
  // Whether one of the elements in a word is infinite or NaN.
  static BINARYMOS_DEVICE bool HasNonFinite(uint32_t word) {
    return (((word & 0x7c007c00u) + 0x04000400u) & 0x80008000u) != 0;
  }
};

template <>
struct KvCells<uint8_t> {  // e4m3
  static constexpr int kStepsPerLoad = 2;

  // A lane has dimensions 4 t to 4 t + 3, in place of 2 t, 2 t + 1, 2 t + 8 and
  // 2 t + 9.
  static BINARYMOS_DEVICE int SlotOf(int d) {
    return d / 4 * 2 + d % 2 + d % 4 / 2 * 8;
  }
  // A transposed pair is dimensions 2 g and 2 g + 1: one for either tile.
  static BINARYMOS_DEVICE int DimensionOf(int tile, int column) {
    return 2 * column + tile;
  }
  static BINARYMOS_DEVICE FragmentPair Keys(const Words4& load, int step) {
    const uint32_t lower = load.v[step];
    const uint32_t upper = load.v[2 + step];
    return {{{{E4m3Pair(lower), E4m3Pair(lower >> 16)}},
             {{E4m3Pair(upper), E4m3Pair(upper >> 16)}}}};
  }
  static BINARYMOS_DEVICE FragmentPair Values(const Words4& load, int step) {
    const uint32_t lower = load.v[2 * step];
    const uint32_t upper = load.v[2 * step + 1];
    return {
        {{{E4m3Pair(EvenBytes(lower)), E4m3Pair(EvenBytes(upper))}},
         {{E4m3Pair(EvenBytes(lower >> 8)), E4m3Pair(EvenBytes(upper >> 8))}}}};
  }
  static BINARYMOS_DEVICE bool HasNonFinite(uint32_t word) {
    return (((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) != 0;
  }

 private:
  // Bytes 0 and 2.
  static BINARYMOS_DEVICE uint32_t EvenBytes(uint32_t word) {
    return (word & 0xffu) | (word >> 8 & 0xff00u);
  }
};

}  // namespace binarymos::cuda
