// What the instruction sets share of the binary linear, written once against
// Lanes16 and compiled for each (canonical_math.h). Included by the .cc files
// named after them, and by binary_mos_linear.cc for RowPosition() only.
//
// `Core` is their integer part:
//   // q = round(u * inverse), ties to even. |u * inverse| rounds to at most
//   // qmax, because inverse = qmax / max |u| is off by half an ulp only.
//   static void Quantize(const float u[kSliceInputs], float inverse,
//                        int16_t q[kSliceInputs]);
//   // Bytes of a slice of a token in the form that AddSlice() reads: at most
//   // kTableBytes.
//   static constexpr int kTokenBytes;
//   // That form of q, and of `slice` all but the scale.
//   static void Encode(const int16_t q[kSliceInputs], BinaryMosSlice& slice,
//                      uint8_t token[kTokenBytes]);
//   // For Multiply() alone, in whose place AMX has a loop of its own:
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

// mixed[t] = 16 elements from k of sum over e of g[t][e] * scale[e], scale:
// [E, size] f16.
template <bool kWhole, int kTokens>
inline void MixScale(const float (*g)[kMaxBinaryMosExperts], int experts,
                     const uint16_t* scale, int64_t k, int64_t size,
                     Lanes16 mixed[kTokens]) {
  for (int t = 0; t < kTokens; ++t) mixed[t] = Zero();
  for (int e = 0; e < experts; ++e) {
    const Lanes16 each = LoadElements<kWhole>(scale + e * size, k, size);
    for (int t = 0; t < kTokens; ++t) {
      mixed[t] = Fma(Set1(g[t][e]), each, mixed[t]);
    }
  }
}

// u[t] = x[t] ⊙ s_in[t] for the inputs of one slice, zeros where there is no
// input. max[t]: the largest |u[t]|, or NaN if an element is not finite.
template <bool kWhole, int kTokens>
inline void ScaleInputs(const BinaryMosLayer& layer, const float* x,
                        const float (*g)[kMaxBinaryMosExperts], int64_t slice,
                        float (*u)[kSliceInputs], float max[kTokens]) {
  const int64_t first = slice * kSliceInputs;
  const int64_t in = layer.in_features;
  Lanes16 largest[kTokens];
  Lanes16 finite[kTokens];  // 0, or NaN after an infinity or NaN
  for (int t = 0; t < kTokens; ++t) largest[t] = finite[t] = Zero();
  for (int i = 0; i < kSliceInputs; i += kLanes) {
    const int64_t k = first + i;
    const bool any = kWhole || k < in;
    Lanes16 scale[kTokens];
    if (any) {
      MixScale<kWhole, kTokens>(g, layer.num_experts, layer.in_scale, k, in,
                                scale);
    }
    for (int t = 0; t < kTokens; ++t) {
      const Lanes16 value =
          any ? Mul(LoadElements<kWhole>(x + t * in, k, in), scale[t]) : Zero();
      largest[t] = Max(Abs(value), largest[t]);
      finite[t] = Fma(value, Zero(), finite[t]);
      Store(value, u[t] + i);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    max[t] = ReduceMax(largest[t]) + ReduceAdd(finite[t]);
  }
}

// A slice of scaled inputs u, max |u| as ScaleInputs() found it.
template <typename Core>
BinaryMosSlice PrepareSlice(const float u[kSliceInputs], float max, float qmax,
                            uint8_t* table) {
  alignas(64) int16_t q[kSliceInputs];
  if (max < 0x1p-100f) return {.scale = 0.0f};
  if (max != max) return {.scale = max};
  Core::Quantize(u, qmax / max, q);
  BinaryMosSlice slice{.scale = max / qmax};
  Core::Encode(q, slice, table);
  return slice;
}

// Tokens [first, first + kTokens), which share the conversion of the scales.
template <typename Core, int kTokens>
void PrepareTokens(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                   int64_t first, int64_t begin, int64_t end) {
  const float* x = tile.x + first * layer.in_features;
  float g[kTokens][kMaxBinaryMosExperts];
  for (int t = 0; t < kTokens; ++t) {
    Gates(layer, x + t * layer.in_features, g[t]);
    if (begin != 0) continue;
    float* stored = tile.gates[first + t];
    for (int e = 0; e < layer.num_experts; ++e) stored[e] = g[t][e];
  }
  for (int64_t s = begin; s < end; ++s) {
    alignas(64) float u[kTokens][kSliceInputs];
    float max[kTokens];
    if ((s + 1) * kSliceInputs <= layer.in_features) {
      ScaleInputs<true, kTokens>(layer, x, g, s, u, max);
    } else {
      ScaleInputs<false, kTokens>(layer, x, g, s, u, max);
    }
    for (int t = 0; t < kTokens; ++t) {
      const int64_t i = s * tile.tokens + first + t;
      tile.slices[i] = PrepareSlice<Core>(u[t], max[t], tile.qmax,
                                          tile.tables + i * Core::kTokenBytes);
    }
  }
}

template <typename Core>
void Prepare(const BinaryMosLayer& layer, const BinaryMosTile& tile,
             int64_t first, int tokens, int64_t begin, int64_t end) {
  if (tokens == 1) {
    PrepareTokens<Core, 1>(layer, tile, first, begin, end);
  } else {
    PrepareTokens<Core, 2>(layer, tile, first, begin, end);
  }
}

// Output scale, bias and the store: the rows [row, row + 16) of all tokens,
// whose sums are `stride` apart.
inline void StoreRows(const BinaryMosLayer& layer, const BinaryMosTile& tile,
                      int64_t row, const float* sums, int64_t stride) {
  const int64_t out = layer.out_features;
  const int experts = layer.num_experts;
  Lanes16 scales[kMaxBinaryMosExperts];
  for (int e = 0; e < experts; ++e) {
    scales[e] = LoadAt(layer.out_scale + e * out, row, out);
  }
  for (int64_t t = 0; t < tile.tokens; ++t, sums += stride) {
    Lanes16 scale = Zero();
    for (int e = 0; e < experts; ++e) {
      scale = Fma(Set1(tile.gates[t][e]), scales[e], scale);
    }
    Lanes16 value = layer.bias == nullptr
                        ? Mul(Load(sums), scale)
                        : Fma(Load(sums), scale, LoadAt(layer.bias, row, out));
    float* y = tile.y + t * out;
    if (tile.accumulate) value = Add(LoadAt(y, row, out), value);
    StoreAt(value, y, row, out);
  }
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
                       tile.tables + s * tile.tokens * Core::kTokenBytes,
                       tile.tokens, sums[i]);
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
    for (int r = 0; r < kStripRows; r += kLanes) {
      if (first_row + r >= layer.out_features) break;
      StoreRows(layer, tile, first_row + r, totals[i][0] + r, kStripRows);
    }
  }
}

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu
