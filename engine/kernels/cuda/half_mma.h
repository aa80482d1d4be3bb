// The fragments of the tensor core instruction that multiplies halves.
//
// mma.m16n8k16 with f16 operands adds the product of A (16 rows, 16 k) and B
// (16 k, 8 columns) to C in f32. Lane 4 g + t holds pairs of halves, the lower
// half of a word first:
//   A: four words; a0: row g, k = 2 t, 2 t + 1; a1: the same of row g + 8;
//      a2, a3: rows g, g + 8, k = 2 t + 8, 2 t + 9
//   B: two words of column g; b0: k = 2 t, 2 t + 1; b1: k = 2 t + 8, 2 t + 9
//   C: c0, c1: row g, columns 2 t, 2 t + 1; c2, c3: the same of row g + 8
// (PTX ISA, "Matrix Fragments for mma.m16n8k16".) Products are exact; in what
// order and with how many bits the tensor core adds the 16 and C, it does not
// say, so results may differ from the emulator's in the last bits. Published
// tests found that Hopper's lines the 17 up with the largest exponent, 2 bits
// below an f32's last, and cuts the rest, of the sum too; Ampere's 9 at a time,
// 1 bit below. An element of C depends on its row of A, its column of B, on
// nothing else.
//
// ldmatrix.x4 brings four matrices of 8 rows of 8 halves from shared memory:
// lanes 8 m to 8 m + 7 name the rows of matrix m (16 bytes, aligned), word m of
// lane 4 g + t is row g, columns 2 t and 2 t + 1 of matrix m: as A and, with
// columns in rows, B want it. Transposed, it is rows 2 t and 2 t + 1 of column
// g: B from rows of k.
//
// Two halves hold an f32 but for its last two bits: hi is the nearest half, lo
// the nearest to the rest. Where neither is subnormal, 2^-22 of it is lost at
// most; so who splits scales first.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kHalfMmaRows = 16;
inline constexpr int kHalfMmaColumns = 8;
inline constexpr int kHalfMmaDepth = 16;

// A lane's part of the operands.
using HalfFragmentA = Words4;
using HalfFragmentB = Words2;
using FloatFragment = Floats4;

struct HalfPair {
  uint16_t hi, lo;
};
BINARYMOS_DEVICE HalfPair SplitIntoHalves(float value) {
  const uint16_t hi = ToHalf(value);
  return {hi, ToHalf(value - ToFloat(hi))};
}

// Word of two halves, the lower first.
BINARYMOS_DEVICE uint32_t PackHalves(uint16_t lower, uint16_t upper) {
  return lower | static_cast<uint32_t>(upper) << 16;
}

}  // namespace binarymos::cuda
