// A `Core` (binary_mos_linear_inl.h) by look-ups, and its AddSlice() by byte
// shuffles, written once for every instruction set that has them. Included by
// their .cc files.
//
// `Vector` has the instructions:
//   using Bytes;                        // kRows bytes, or half as many words
//   static constexpr int kRows;         // 16, 32 or 64
//   static constexpr int kTwoVectors;   // how many vectors of rows share the
//   static constexpr int kThreeVectors; // tables of two, of three digits
//   static constexpr bool kReload;      // with packed signs, load the tables
//                                       // for each vector: few registers
//   Zero(), Load(p), Store(bytes, p)    // p is aligned to the vector's size
//   Table(p)                            // 16 bytes, in every 128 bits
//   LookUp(table, index)                // table[index[i]], index < 16
//   LowNibbles(bytes), HighNibbles(bytes)
//   AddBytes(a, b), AddWords(a, b)      // modulo 2^8, 2^16
//   AddOddBytes(words, bytes)           // words[i] + bytes[2 i + 1]
//   SubShifted(mixed, odd)              // words mixed - 256 * odd
//   Keep(a, b)                          // in registers, here
//   // sums[r] = fma(2 t - sum_abs, scale, sums[r]), t from the words of each
//   // digit, for the rows that even words stand for: see RowPosition(). `sums`
//   // is that of the vector's first row; odd words stand for rows 16 later.
//   AddSums<kDigits>(words, sum_abs, scale, sums)
//   RowOffset(vector)                   // its first row in the block
//   Prefetch(p)
//
// Per pair (eight inputs), vector of rows and two digits that is four look-ups,
// two byte additions, and per digit a word addition of the bytes as they are
// (even + 256 * odd, wrapping) and one of the odd bytes alone.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/binary_mos_linear_kernels.h"

namespace binarymos::cpu {

// From `Tables` (binary_mos_linear_tables.h) and `LookUp`, which has
// AddSlice().
template <typename Tables, typename LookUp>
struct LookUpCore : Tables, LookUp {
  static constexpr int kTokenBytes = kTableBytes;

  static void Encode(const int16_t q[kSliceInputs], BinaryMosSlice& slice,
                     uint8_t token[kTokenBytes]) {
    alignas(64) int32_t neg[kSliceGroups];
    alignas(64) int32_t abs[kSliceGroups];
    Tables::GroupSums(q, neg, abs);
    int32_t max_group = 0;
    int32_t max_pair = 0;
    slice.sum_abs = 0;
    for (int i = 0; i < kSliceGroups; i += 2) {
      const int32_t pair = abs[i] + abs[i + 1];
      slice.sum_abs += pair;
      max_pair = pair > max_pair ? pair : max_pair;
      max_group = abs[i] > max_group ? abs[i] : max_group;
      max_group = abs[i + 1] > max_group ? abs[i + 1] : max_group;
    }
    constexpr int32_t kTwoDigits = 256 << kTwoLowBits;
    slice.digits = max_group < kTwoDigits ? 2 : 3;
    slice.wide = max_pair >= kTwoDigits;
    Tables::BuildTable(q, neg, slice.digits, token);
  }
};

template <typename Vector>
struct SliceLookUp {
  using Bytes = typename Vector::Bytes;

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
  // How far ahead signs are fetched: the next slice of the strip. Half and
  // double of it were 5 to 10 % slower with one token on AVX2.
  static constexpr int kPrefetchBytes = kStripBlocks * kBlockBytes;

  // The sums of one digit over a slice.
  struct DigitSums {
    Bytes mixed = Vector::Zero();  // even + 256 * odd, modulo 2^16
    Bytes odd = Vector::Zero();

    void Add(Bytes bytes) {
      mixed = Vector::AddWords(mixed, bytes);
      odd = Vector::AddOddBytes(odd, bytes);
      // Else GCC 12 moves them about (1.27x slower on AVX2).
      Vector::Keep(mixed, odd);
    }
    Bytes even() const { return Vector::SubShifted(mixed, odd); }
  };

  // The nibbles of one slice as bytes: [block][pair][half][row position, 64].
  static void ExpandNibbles(const uint8_t* sign, int blocks, uint8_t* nibbles) {
    for (int i = 0; i < blocks * kBlockBytes; i += kBlockRows) {
      Vector::Prefetch(sign + i + kPrefetchBytes);
      for (int row = 0; row < kBlockRows; row += Vector::kRows) {
        const Bytes bytes = Vector::Load(sign + i + row);
        uint8_t* low = nibbles + 2 * i + row;
        Vector::Store(Vector::LowNibbles(bytes), low);
        Vector::Store(Vector::HighNibbles(bytes), low + kBlockRows);
      }
    }
  }

  // The nibbles of a vector of rows for one half (four inputs) of a pair; in
  // the expanded form if kExpanded.
  template <bool kExpanded>
  static Bytes LoadIndex(const uint8_t* signs, int half) {
    if constexpr (kExpanded) return Vector::Load(signs + half * kBlockRows);
    const Bytes packed = Vector::Load(signs + half / 2 * kBlockRows);
    return half % 2 == 0 ? Vector::LowNibbles(packed)
                         : Vector::HighNibbles(packed);
  }

  // One slice of one token for kVectors vectors of rows, from vector `first` of
  // a block. `signs` are packed signs or, if kExpanded, ExpandNibbles of them.
  template <int kDigits, int kVectors, bool kExpanded, bool kWide>
  static void AddRows(const uint8_t* signs, int first,
                      const BinaryMosSlice& slice, const uint8_t* table,
                      float* sums) {
    // Pairs whose digits fit a byte together: 4 * 63 for three digits.
    constexpr int kPairs = kDigits == 2 ? 1 : 2;
    constexpr int kPairBytes = kExpanded ? 2 * kBlockRows : kBlockRows;
    DigitSums digits[kVectors][kDigits];
    for (int pair = 0; pair < kSlicePairs; pair += kPairs) {
      const uint8_t* p = signs + pair * kPairBytes + first * Vector::kRows;
      const uint8_t* t = table + pair * 2 * kDigits * 16;
      Vector::Prefetch(t + kTableBytes);  // the next token's, or slice's
      if constexpr (!kExpanded) Vector::Prefetch(p + kPrefetchBytes);
      for (int v = 0; v < kVectors; ++v, p += Vector::kRows) {
        if constexpr (Vector::kReload && !kExpanded) {
          asm volatile("" ::: "memory");
        }
        Bytes bytes[kDigits];
        for (int half = 0; half < 2 * kPairs; ++half) {
          const Bytes index = LoadIndex<kExpanded>(p, half);
          for (int d = 0; d < kDigits; ++d) {
            const Bytes value = Vector::LookUp(
                Vector::Table(t + (half * kDigits + d) * 16), index);
            if (half == 0) {
              bytes[d] = value;
            } else if (kWide && d + 1 == kDigits) {
              digits[v][d].Add(value);
            } else {
              bytes[d] = Vector::AddBytes(bytes[d], value);
            }
          }
        }
        for (int d = 0; d < kDigits; ++d) digits[v][d].Add(bytes[d]);
      }
    }

    for (int v = 0; v < kVectors; ++v) {
      Bytes even[kDigits];
      Bytes odd[kDigits];
      for (int d = 0; d < kDigits; ++d) {
        even[d] = digits[v][d].even();
        odd[d] = digits[v][d].odd;
      }
      float* row = sums + Vector::RowOffset(first + v);
      Vector::template AddSums<kDigits>(even, slice.sum_abs, slice.scale, row);
      Vector::template AddSums<kDigits>(odd, slice.sum_abs, slice.scale,
                                        row + 16);
    }
  }

  // The same for all rows of a block.
  template <int kDigits, bool kExpanded, bool kWide>
  static void AddBlock(const uint8_t* signs, const BinaryMosSlice& slice,
                       const uint8_t* table, float* sums) {
    constexpr int kVectors =
        kDigits == 2 ? Vector::kTwoVectors : Vector::kThreeVectors;
    for (int v = 0; v < kBlockRows / Vector::kRows; v += kVectors) {
      AddRows<kDigits, kVectors, kExpanded, kWide>(signs, v, slice, table,
                                                   sums);
    }
  }

  // The same for all rows of a strip, whatever the slice is.
  template <bool kExpanded>
  static void AddStrip(const uint8_t* signs, int blocks,
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
        AddBlock<3, kExpanded, false>(signs, slice, table, sums);
      } else if (slice.wide) {
        AddBlock<2, kExpanded, true>(signs, slice, table, sums);
      } else {
        AddBlock<2, kExpanded, false>(signs, slice, table, sums);
      }
    }
  }
};

}  // namespace binarymos::cpu
