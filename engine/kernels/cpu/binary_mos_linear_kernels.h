// Between binary_mos_linear.cc, which hands out the work, and its
// instruction sets. Nobody else includes this.
//
// Lookup. A pair is eight inputs, two groups of four. For a group q0..q3 the
// nibble n of signs selects ±q0±q1±q2±q3 = 2 t(n) - (|q0|+|q1|+|q2|+|q3|),
// where t(n) >= 0 is the sum of the |q| whose sign bit agrees with q's sign.
// t(n) is kept as bytes: its low kTwoLowBits and the rest (two digits), or, if
// the rest could overflow a byte, 6 + 6 + rest (three digits, as large values
// of 16 bits need). A digit of a pair's two groups together fits a byte too,
// save the last of two digits in a wide slice. A slice's sum is 2 * sum of t -
// sum of |q|: exact, so digits, tiles and the order of adding do not matter.
//
// AMX multiplies signs as bytes instead (binary_mos_linear_amx.cc).
//
// Signs. Rows are padded to blocks of 64; two blocks are a strip (the last
// strip may have one). In memory:
//   [strip][slice of 256 inputs][block][pair, 32 of them][row position, 64]
// one byte each, the checkpoint's own: low nibble the first group. A strip is
// thus read front to back, a cache line per pair and block. RowPosition() puts
// rows where widening bytes to 32-bit integers leaves them in order.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/binary_mos_linear_layer.h"
#include "engine/kernels/cpu/canonical_math.h"

namespace binarymos::cpu {

inline constexpr int kSliceGroups = kSliceInputs / 4;
inline constexpr int kSlicePairs = kSliceInputs / 8;
inline constexpr int kBlockRows = 64;
inline constexpr int kBlockBytes = kSlicePairs * kBlockRows;  // of one slice
inline constexpr int kStripBlocks = 2;
inline constexpr int kStripRows = kStripBlocks * kBlockRows;
inline constexpr int kTwoLowBits = 7;
inline constexpr int kThreeLowBits = 6;
inline constexpr int kMaxDigits = 3;
// [group][digit][nibble]
inline constexpr int kTableBytes = kSliceGroups * kMaxDigits * 16;
// Tokens that share one pass over the weights.
inline constexpr int kTileTokens = 32;
// Strips that share one pass over the tables.
inline constexpr int kTaskStrips = 4;
// What two signed bytes hold.
inline constexpr int kAmxMaxQuantized = 127 * 256 + 127;
// A single token is faster by look-ups: signs are not worth expanding for it.
inline constexpr int kAmxMinTokens = 2;

// One slice of one token, its table aside.
struct BinaryMosSlice {
  float scale = 0.0f;  // m / qmax; 0: nothing to add; NaN: not finite
  // By look-ups:
  int32_t sum_abs = 0;  // of q
  int32_t digits = 0;   // 2 or 3; 0: no table
  bool wide = false;    // a pair's sum of |q| takes more than 15 bits
};

// The tile of tokens in work. Everything lies in the workspace.
struct BinaryMosTile {
  int64_t tokens = 0;  // at most kTileTokens
  const float* x;      // [tokens, in]
  float* y;            // [tokens, out]
  bool accumulate;
  float qmax;
  float (*gates)[kMaxBinaryMosExperts];  // [tokens]
  BinaryMosSlice* slices;                // [num_slices, tokens]
  uint8_t* tables;  // [num_slices, tokens, kTokenBytes of the core], with room
                    // for kTableBytes
};

struct BinaryMosKernels {
  // Quantizes slices [begin, end) of one or two tokens from `first` and builds
  // their tables. The gates are cheap next to that, so every call computes them
  // anew instead of waiting for another; the one with begin == 0 stores them.
  void (*prepare)(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                  int64_t first, int tokens, int64_t begin, int64_t end);
  // y of all tokens of the tile, for the rows of strips [begin, end), at most
  // kTaskStrips of them. They take turns at each slice, so that its tables are
  // read from a near cache by all but the first.
  void (*multiply)(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                   int64_t begin, int64_t end);
};

const BinaryMosKernels& PortableBinaryMosKernels();
const BinaryMosKernels& Avx2BinaryMosKernels();    // on x86-64 only
const BinaryMosKernels& Avx512BinaryMosKernels();  // on x86-64 only
// On x86-64 only. Not for every tile: see KernelsFor() in binary_mos_linear.cc.
const BinaryMosKernels& AmxBinaryMosKernels();
const BinaryMosKernels& NeonBinaryMosKernels();  // on AArch64 only

}  // namespace binarymos::cpu
