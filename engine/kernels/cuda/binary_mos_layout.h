// Where bits are: packed signs, bit planes, and the fragments of the tensor
// core instruction that multiplies them.
//
// Numbers. The scaled activation of one token and slice of 256 inputs is 256
// integers q of P bits, two's complement. Plane j holds bit j of each q, 256
// bits = 8 words of 32, bit i of word w belongs to input 32 w + i. With
// coefficient(j) = 2^j, -2^(P - 1) for the last,
//
//   sum of ±q = 2 * sum over j of coefficient(j) * popc(W & plane j) - sum of q
//
// where W are the sign bits, 1 for +1. Every step is exact in int32:
// |sum| <= 256 * 32767 < 2^23, which f32 holds exactly too.
//
// The instruction. mma.m16n8k256.b1 with .and.popc adds popc(A & B) of 16 rows
// of A (signs) and 8 columns of B (planes), 256 bits each. Lane 4 g + t holds
//   A: four words; a0, a1: rows g, g + 8, word t; a2, a3: the same, word t + 4
//   B: two words of column g; b0: word t, b1: word t + 4
//   C: c0, c1: row g, columns 2 t, 2 t + 1; c2, c3: the same of row g + 8
// (PTX ISA, "Matrix Fragments for mma.m16n8k256".) A sum over k does not care
// for the order of k, so we feed word 2 t where the instruction says t and
// 2 t + 1 where it says t + 4, in A and B alike: a lane's B is then one load.
//
// Signs in memory: rows padded to 64, inputs to 256, both with zeros;
//   [16 rows][slice][lane][a0, a1, a2, a3]
// A warp reads 512 bytes in a row per slice of 16 rows.
//
// Planes in memory: units of 8 words in natural order, one per (token, slice,
// plane). One token: [slice][plane], columns of B are planes. More: tokens in
// groups of 8, [group][slice][plane][token of the group], columns of B are
// tokens, so that a lane collects all planes of its tokens.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kSliceWords = kSliceInputs / 32;
inline constexpr int kMmaRows = 16;
inline constexpr int kMmaColumns = 8;
inline constexpr int kPaddedRows = 64;
inline constexpr int kMaxExperts = 64;
// Words of signs of 16 rows and one slice.
inline constexpr int kTileWords = kMmaRows * kSliceWords;

// A lane's part of the operands.
using SignFragment = Words4;
using PlaneFragment = Words2;
struct CountFragment {
  int32_t v[4];
};

// Shape of a layer with its padding.
struct BinaryMosShape {
  int64_t in = 0;   // a multiple of 8
  int64_t out = 0;  // at least 1
  int experts = 1;  // 1 to kMaxExperts

  constexpr int64_t num_slices() const { return CeilDiv(in, kSliceInputs); }
  // Of 16 rows.
  constexpr int64_t num_tiles() const {
    return CeilDiv(out, kPaddedRows) * (kPaddedRows / kMmaRows);
  }
  constexpr int64_t sign_words() const {
    return num_tiles() * num_slices() * kTileWords;
  }
};

// Which word of which row of a 16 x 256 tile is register `reg` of `lane`.
struct TilePosition {
  int row;
  int word;
};
BINARYMOS_DEVICE TilePosition SignPosition(int lane, int reg) {
  return {lane / 4 + reg % 2 * 8, 2 * (lane % 4) + reg / 2};
}

// The number of planes that hold q of `bits` bits.
constexpr int NumPlanes(int bits) {
  return bits <= 8 ? 8 : bits <= 12 ? 12 : 16;
}
constexpr int32_t PlaneCoefficient(int plane, int num_planes) {
  return plane == num_planes - 1 ? -(1 << plane) : 1 << plane;
}

// Where things are in the planes of `tokens` tokens.
struct PlaneLayout {
  int64_t tokens = 0;
  int64_t num_slices = 0;
  int num_planes = 16;  // 8, 12 or 16; not 12 with one token

  // The first word of a unit.
  BINARYMOS_DEVICE int64_t UnitWord(int64_t token, int64_t slice,
                                    int plane) const {
    if (tokens == 1) return (slice * num_planes + plane) * kSliceWords;
    return GroupWord(token / kMmaColumns, slice, plane) +
           token % kMmaColumns * kSliceWords;
  }
  // Of the units of 8 tokens, which lie in a row. REQUIRES: tokens > 1.
  BINARYMOS_DEVICE int64_t GroupWord(int64_t group, int64_t slice,
                                     int plane) const {
    return ((group * num_slices + slice) * num_planes + plane) * kMmaColumns *
           kSliceWords;
  }
};

// One slice of one token beside its planes.
struct PreparedSlice {
  float scale;  // m / qmax; 0: nothing to add; NaN: an input is not finite
  int32_t sum;  // of q
};

}  // namespace binarymos::cuda
