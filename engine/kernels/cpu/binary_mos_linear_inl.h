// What the two instruction sets share of the binary linear, written once
// against Lanes16 and compiled twice (canonical_math.h). Included by
// binary_mos_linear_portable.cc and binary_mos_linear_avx2.cc, and by
// binary_mos_linear.cc for RowPosition() only.
//
// `Core` is their integer part:
//   // neg[i], abs[i]: sum of max(-q, 0) and of |q| over group i.
//   static void GroupSums(const int16_t q[kSliceInputs],
//                         int32_t neg[kSliceGroups],
//                         int32_t abs[kSliceGroups]);
//   // The table of a slice, neg as above.
//   static void BuildTable(const int16_t q[kSliceInputs],
//                          const int32_t neg[kSliceGroups], int digits,
//                          uint8_t table[kTableBytes]);
//   // sums[t][row] = fma(S, scale, sums[t][row]) for one slice of `tokens`
//   // tokens and the rows of `blocks` blocks.
//   static void AddSlice(const uint8_t* sign, int blocks,
//                        const BinaryMosSlice* slices, const uint8_t* tables,
//                        int64_t tokens, float (*sums)[kStripRows]);
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/binary_mos_linear_kernels.h"
#include "engine/kernels/cpu/canonical_math.h"

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

// Where row r of a block stands among the 64 bytes of a pair: in two vectors of
// 32. Widening takes even and odd bytes of a vector apart and interleaves
// within halves of 128 bits.
constexpr int RowPosition(int row) {
  const int eight = row % 32 / 8;  // which vector of eight 32-bit integers
  const int lane = row % 8;
  return row / 32 * 32 + (lane / 4) * 16 + (eight % 2) * 8 + (lane % 4) * 2 +
         eight / 2;
}

// g[e] for one token: softmax over the experts, in ascending order throughout.
inline void Gates(const BinaryMosLayer& layer, const float* x, float* g) {
  if (layer.gate == nullptr) {
    g[0] = 1.0f;
    return;
  }
  const int experts = layer.num_experts;
  const int64_t in = layer.in_features;
  for (int e = 0; e < experts; ++e) {
    g[e] = GroupedDot(x, layer.gate + e * in, in);
  }
  float max = g[0];
  for (int e = 1; e < experts; ++e) max = g[e] > max ? g[e] : max;
  float sum = 0.0f;
  for (int e = 0; e < experts; ++e) {
    g[e] = Exp(g[e] - max);
    sum += g[e];
  }
  for (int e = 0; e < experts; ++e) g[e] = g[e] / sum;
}

// 16 elements from k of sum over e of g[e] * scale[e], scale: [E, size] f16.
inline Lanes16 MixedScale(const float* g, int experts, const uint16_t* scale,
                          int64_t k, int64_t size) {
  Lanes16 sum = Zero();
  for (int e = 0; e < experts; ++e) {
    sum = Fma(Set1(g[e]), LoadAt(scale + e * size, k, size), sum);
  }
  return sum;
}

// u = x ⊙ s_in for the inputs of one slice, zeros where there is no input.
// Returns max |u|, or NaN if an element is not finite.
inline float ScaleInputs(const BinaryMosLayer& layer, const float* x,
                         const float* g, int64_t slice, float u[kSliceInputs]) {
  const int64_t first = slice * kSliceInputs;
  const int64_t in = layer.in_features;
  Lanes16 max = Zero();
  Lanes16 finite = Zero();  // 0, or NaN after an infinity or NaN
  for (int i = 0; i < kSliceInputs; i += kLanes) {
    Lanes16 value = Zero();
    if (const int64_t k = first + i; k < in) {
      value = Mul(LoadAt(x, k, in),
                  MixedScale(g, layer.num_experts, layer.in_scale, k, in));
    }
    max = Max(Abs(value), max);
    finite = Fma(value, Zero(), finite);
    Store(value, u + i);
  }
  return ReduceMax(max) + ReduceAdd(finite);
}

// q = round(u * inverse), ties to even. |u * inverse| rounds to at most qmax,
// because inverse = qmax / max |u| is off by half an ulp only: no clamp.
inline void Quantize(const float u[kSliceInputs], float inverse,
                     int16_t q[kSliceInputs]) {
  // Adding it leaves the integer in the low bits, in two's complement.
  const Lanes16 magic = Set1(0x1.8p23f);
  for (int i = 0; i < kSliceInputs; i += kLanes) {
    float rounded[kLanes];
    Store(Add(Mul(Load(u + i), Set1(inverse)), magic), rounded);
    for (int j = 0; j < kLanes; ++j) {
      q[i + j] = static_cast<int16_t>(
          static_cast<uint16_t>(__builtin_bit_cast(uint32_t, rounded[j])));
    }
  }
}

template <typename Core>
BinaryMosSlice PrepareSlice(const BinaryMosLayer& layer, const float* x,
                            const float* g, int64_t slice, float qmax,
                            uint8_t* table) {
  alignas(64) float u[kSliceInputs];
  alignas(64) int16_t q[kSliceInputs];
  const float max = ScaleInputs(layer, x, g, slice, u);
  if (max < 0x1p-100f) return {.scale = 0.0f, .sum_abs = 0, .digits = 0};
  if (max != max) return {.scale = max, .sum_abs = 0, .digits = 0};
  Quantize(u, qmax / max, q);

  alignas(64) int32_t neg[kSliceGroups];
  alignas(64) int32_t abs[kSliceGroups];
  Core::GroupSums(q, neg, abs);
  int32_t sum_abs = 0;
  int32_t max_pair = 0;
  for (int i = 0; i < kSliceGroups; i += 2) {
    const int32_t pair = abs[i] + abs[i + 1];
    sum_abs += pair;
    max_pair = pair > max_pair ? pair : max_pair;
  }
  // Then the upper digits of a pair's two groups add up to a byte at most.
  const int digits = max_pair < (256 << kTwoLowBits) ? 2 : 3;
  Core::BuildTable(q, neg, digits, table);
  return {.scale = max / qmax, .sum_abs = sum_abs, .digits = digits};
}

template <typename Core>
void Prepare(const BinaryMosLayer& layer, const BinaryMosTile& tile,
             int64_t token, int64_t begin, int64_t end) {
  const float* x = tile.x + token * layer.in_features;
  float g[kMaxBinaryMosExperts];
  Gates(layer, x, g);
  if (begin == 0) {
    float* stored = tile.gates + token * kMaxBinaryMosExperts;
    for (int e = 0; e < layer.num_experts; ++e) stored[e] = g[e];
  }
  for (int64_t s = begin; s < end; ++s) {
    const int64_t i = s * tile.tokens + token;
    tile.slices[i] = PrepareSlice<Core>(layer, x, g, s, tile.qmax,
                                        tile.tables + i * kTableBytes);
  }
}

// Output scale, bias and the store, for the rows [row, row + 16).
inline void StoreRows(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                      int64_t token, int64_t row, const float* sums) {
  const int64_t out = layer.out_features;
  const float* g = tile.gates + token * kMaxBinaryMosExperts;
  float* y = tile.y + token * out;
  const Lanes16 scale =
      MixedScale(g, layer.num_experts, layer.out_scale, row, out);
  Lanes16 value = layer.bias == nullptr
                      ? Mul(Load(sums), scale)
                      : Fma(Load(sums), scale, LoadAt(layer.bias, row, out));
  if (tile.accumulate) value = Add(LoadAt(y, row, out), value);
  StoreAt(value, y, row, out);
}

template <typename Core>
void Multiply(const BinaryMosLayer& layer, const BinaryMosTile& tile,
              int64_t strip) {
  const int64_t num_slices = layer.num_slices;
  const int64_t first_block = strip * kStripBlocks;
  const int64_t left = layer.num_blocks - first_block;
  const int blocks =
      static_cast<int>(left < kStripBlocks ? left : kStripBlocks);
  const uint8_t* sign = layer.sign + first_block * num_slices * kBlockBytes;

  alignas(64) float totals[kTileTokens][kStripRows];
  alignas(64) float sums[kTileTokens][kStripRows];
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int r = 0; r < kStripRows; ++r) totals[t][r] = 0.0f;
  }
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t begin = GroupBegin(group, num_slices);
    const int64_t end = GroupBegin(group + 1, num_slices);
    if (begin == end) continue;
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int r = 0; r < kStripRows; ++r) sums[t][r] = 0.0f;
    }
    for (int64_t s = begin; s < end; ++s) {
      Core::AddSlice(sign, blocks, tile.slices + s * tile.tokens,
                     tile.tables + s * tile.tokens * kTableBytes, tile.tokens,
                     sums);
      sign += blocks * kBlockBytes;
    }
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int r = 0; r < kStripRows; ++r) totals[t][r] += sums[t][r];
    }
  }

  const int64_t first_row = strip * kStripRows;
  for (int64_t t = 0; t < tile.tokens; ++t) {
    for (int r = 0; r < kStripRows; r += kLanes) {
      if (first_row + r >= layer.out_features) break;
      StoreRows(layer, tile, t, first_row + r, totals[t] + r);
    }
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
