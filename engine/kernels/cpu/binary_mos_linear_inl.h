// What the instruction sets share of the binary linear, written once against
// Lanes16 and compiled for each (canonical_math.h). Included by the .cc files
// named after them, and by binary_mos_linear.cc for RowPosition() only.
//
// `Core` is their integer part:
//   // q = round(u * inverse), ties to even. |u * inverse| rounds to at most
//   // qmax, because inverse = qmax / max |u| is off by half an ulp only.
//   static void Quantize(const float u[kSliceInputs], float inverse,
//                        int16_t q[kSliceInputs]);
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
// 32. Widening interleaves within halves of 128 bits, four bytes of each.
constexpr int RowPosition(int row) {
  const int eight = row % 32 / 8;  // which vector of eight 32-bit integers
  const int lane = row % 8;
  return row / 32 * 32 + (lane / 4) * 16 + (eight % 2) * 8 + (lane % 4) * 2 +
         eight / 2;
}

// LoadAt(), or faster if kWhole: all 16 elements are there.
template <bool kWhole, typename T>
inline Lanes16 LoadElements(const T* p, int64_t k, int64_t size) {
  if constexpr (kWhole) return Load(p + k);
  return LoadAt(p, k, size);
}

// Adds to sums[i] the Dot() of the slice with expert i, for four experts side
// by side: they neither wait for each other nor read x four times.
template <bool kWhole>
inline void AddSliceDots(const float* x, const uint16_t* gate, int64_t slice,
                         int64_t in, float sums[4]) {
  Lanes16 lanes[4] = {Zero(), Zero(), Zero(), Zero()};
  const int64_t first = slice * kSliceInputs;
  for (int64_t k = first; k < first + kSliceInputs; k += kLanes) {
    if (!kWhole && k >= in) break;
    const Lanes16 value = LoadElements<kWhole>(x, k, in);
    for (int i = 0; i < 4; ++i) {
      const Lanes16 weight = LoadElements<kWhole>(gate + i * in, k, in);
      lanes[i] = Fma(value, weight, lanes[i]);
    }
  }
  float dots[4];
  ReduceAdd4(lanes, dots);
  for (int i = 0; i < 4; ++i) sums[i] += dots[i];
}

// out[i] = GroupedDot(x, gate + i * in, in) for four experts.
inline void GroupedDot4(const float* x, const uint16_t* gate, int64_t in,
                        float out[4]) {
  const int64_t num_slices = (in + kSliceInputs - 1) / kSliceInputs;
  for (int i = 0; i < 4; ++i) out[i] = 0.0f;
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t end = GroupBegin(group + 1, num_slices);
    float sums[4] = {};
    for (int64_t s = GroupBegin(group, num_slices); s < end; ++s) {
      if ((s + 1) * kSliceInputs <= in) {
        AddSliceDots<true>(x, gate, s, in, sums);
      } else {
        AddSliceDots<false>(x, gate, s, in, sums);
      }
    }
    for (int i = 0; i < 4; ++i) out[i] += sums[i];
  }
}

// g[e] for one token: softmax over the experts, in ascending order throughout.
inline void Gates(const BinaryMosLayer& layer, const float* x, float* g) {
  if (layer.gate == nullptr) {
    g[0] = 1.0f;
    return;
  }
  const int experts = layer.num_experts;
  const int64_t in = layer.in_features;
  int e = 0;
  for (; e + 4 <= experts; e += 4) {
    GroupedDot4(x, layer.gate + e * in, in, g + e);
  }
  for (; e < experts; ++e) g[e] = GroupedDot(x, layer.gate + e * in, in);
  float max = g[0];
  for (e = 1; e < experts; ++e) max = g[e] > max ? g[e] : max;
  float sum = 0.0f;
  for (e = 0; e < experts; ++e) {
    g[e] = Exp(g[e] - max);
    sum += g[e];
  }
  for (e = 0; e < experts; ++e) g[e] = g[e] / sum;
}

// 16 elements from k of sum over e of g[e] * scale[e], scale: [E, size] f16.
template <bool kWhole>
inline Lanes16 MixedScale(const float* g, int experts, const uint16_t* scale,
                          int64_t k, int64_t size) {
  Lanes16 sum = Zero();
  for (int e = 0; e < experts; ++e) {
    const Lanes16 each = LoadElements<kWhole>(scale + e * size, k, size);
    sum = Fma(Set1(g[e]), each, sum);
  }
  return sum;
}

// u = x ⊙ s_in for the inputs of one slice, zeros where there is no input.
// Returns max |u|, or NaN if an element is not finite.
template <bool kWhole>
inline float ScaleInputs(const BinaryMosLayer& layer, const float* x,
                         const float* g, int64_t slice, float u[kSliceInputs]) {
  const int64_t first = slice * kSliceInputs;
  const int64_t in = layer.in_features;
  Lanes16 max = Zero();
  Lanes16 finite = Zero();  // 0, or NaN after an infinity or NaN
  for (int i = 0; i < kSliceInputs; i += kLanes) {
    Lanes16 value = Zero();
    if (const int64_t k = first + i; kWhole || k < in) {
      value =
          Mul(LoadElements<kWhole>(x, k, in),
              MixedScale<kWhole>(g, layer.num_experts, layer.in_scale, k, in));
    }
    max = Max(Abs(value), max);
    finite = Fma(value, Zero(), finite);
    Store(value, u + i);
  }
  return ReduceMax(max) + ReduceAdd(finite);
}

template <typename Core>
BinaryMosSlice PrepareSlice(const BinaryMosLayer& layer, const float* x,
                            const float* g, int64_t slice, float qmax,
                            uint8_t* table) {
  alignas(64) float u[kSliceInputs];
  alignas(64) int16_t q[kSliceInputs];
  const bool whole = (slice + 1) * kSliceInputs <= layer.in_features;
  const float max = whole ? ScaleInputs<true>(layer, x, g, slice, u)
                          : ScaleInputs<false>(layer, x, g, slice, u);
  if (max < 0x1p-100f) return {.scale = 0.0f};
  if (max != max) return {.scale = max};
  Core::Quantize(u, qmax / max, q);

  alignas(64) int32_t neg[kSliceGroups];
  alignas(64) int32_t abs[kSliceGroups];
  Core::GroupSums(q, neg, abs);
  int32_t sum_abs = 0;
  int32_t max_group = 0;
  int32_t max_pair = 0;
  for (int i = 0; i < kSliceGroups; i += 2) {
    const int32_t pair = abs[i] + abs[i + 1];
    sum_abs += pair;
    max_pair = pair > max_pair ? pair : max_pair;
    max_group = abs[i] > max_group ? abs[i] : max_group;
    max_group = abs[i + 1] > max_group ? abs[i + 1] : max_group;
  }
  constexpr int32_t kTwoDigits = 256 << kTwoLowBits;
  const int digits = max_group < kTwoDigits ? 2 : 3;
  Core::BuildTable(q, neg, digits, table);
  return {.scale = max / qmax,
          .sum_abs = sum_abs,
          .digits = digits,
          .wide = max_pair >= kTwoDigits};
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
      MixedScale<false>(g, layer.num_experts, layer.out_scale, row, out);
  Lanes16 value = layer.bias == nullptr
                      ? Mul(Load(sums), scale)
                      : Fma(Load(sums), scale, LoadAt(layer.bias, row, out));
  if (tile.accumulate) value = Add(LoadAt(y, row, out), value);
  StoreAt(value, y, row, out);
}

template <typename Core>
void Multiply(const BinaryMosLayer& layer, const BinaryMosTile& tile,
              int64_t begin, int64_t end) {
  const int64_t num_slices = layer.num_slices;
  const int strips = static_cast<int>(end - begin);
  int blocks[kTaskStrips];
  const uint8_t* sign[kTaskStrips];
  for (int i = 0; i < strips; ++i) {
    const int64_t first_block = (begin + i) * kStripBlocks;
    const int64_t left = layer.num_blocks - first_block;
    blocks[i] = static_cast<int>(left < kStripBlocks ? left : kStripBlocks);
    sign[i] = layer.sign + first_block * num_slices * kBlockBytes;
  }

  alignas(64) float totals[kTaskStrips][kTileTokens][kStripRows];
  alignas(64) float sums[kTaskStrips][kTileTokens][kStripRows];
  for (int i = 0; i < strips; ++i) {
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int r = 0; r < kStripRows; ++r) totals[i][t][r] = sums[i][t][r] = 0;
    }
  }
  for (int group = 0; group < kSumGroups; ++group) {
    const int64_t first = GroupBegin(group, num_slices);
    const int64_t last = GroupBegin(group + 1, num_slices);
    if (first == last) continue;
    for (int64_t s = first; s < last; ++s) {
      for (int i = 0; i < strips; ++i) {
        Core::AddSlice(sign[i], blocks[i], tile.slices + s * tile.tokens,
                       tile.tables + s * tile.tokens * kTableBytes, tile.tokens,
                       sums[i]);
        sign[i] += blocks[i] * kBlockBytes;
      }
    }
    for (int i = 0; i < strips; ++i) {
      for (int64_t t = 0; t < tile.tokens; ++t) {
        for (int r = 0; r < kStripRows; ++r) {
          totals[i][t][r] += sums[i][t][r];
          sums[i][t][r] = 0.0f;
        }
      }
    }
  }

  for (int i = 0; i < strips; ++i) {
    const int64_t first_row = (begin + i) * kStripRows;
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int r = 0; r < kStripRows; r += kLanes) {
        if (first_row + r >= layer.out_features) break;
        StoreRows(layer, tile, t, first_row + r, totals[i][t] + r);
      }
    }
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
