// What both kernels that multiply signs by planes take, and their end: eight
// partial sums of an output, one per group of slices, become the output.
//
//   y = sum * s_out + bias,  s_out = g · out_scale,  groups ascending
#pragma once

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/canonical_math.h"

namespace binarymos::cuda {

struct MultiplyArgs {
  BinaryMosShape shape;
  const uint32_t* signs = nullptr;      // [shape.sign_words()]
  const uint16_t* out_scale = nullptr;  // [E, out] f16
  const uint16_t* bias = nullptr;       // [out] f16 or null
  int64_t tokens = 0;
  const uint32_t* planes = nullptr;       // PlaneLayout
  const PreparedSlice* slices = nullptr;  // [num_slices, tokens]
  const float* gates = nullptr;           // [tokens, E]
  bool accumulate = false;                // y += ... instead of y = ...
  float* y = nullptr;                     // [tokens, out]
};

// The i-th slice of a group, or -1 past its end.
BINARYMOS_DEVICE int64_t SliceOfGroup(int64_t group, int64_t i,
                                      int64_t num_slices) {
  const int64_t slice = GroupBegin(group, num_slices) + i;
  return slice < GroupBegin(group + 1, num_slices) ? slice : -1;
}

// acc + S * m / qmax of one slice. `counts` is the sum over planes of
// coefficient * popc(W & plane).
BINARYMOS_DEVICE float AddSliceSum(int32_t counts, const PreparedSlice& slice,
                                   float acc) {
  if (slice.scale == 0.0f) return acc;
  return Fma(static_cast<float>(2 * counts - slice.sum), slice.scale, acc);
}

// In shared memory: the partial sums of a block's outputs.
template <int kTokens, int kRows>
struct PartialSums {
  float v[kSumGroups][kTokens][kRows];

  // Adds the groups and writes the outputs of rows and tokens from these on.
  template <typename Block>
  BINARYMOS_DEVICE void Finish(Block& block, const MultiplyArgs& args,
                               int64_t first_row, int64_t first_token,
                               int num_threads) const {
    block.ForEach([&](int thread) {
      for (int i = thread; i < kRows * kTokens; i += num_threads) {
        const int64_t row = first_row + i % kRows;
        const int64_t token = first_token + i / kRows;
        if (row >= args.shape.out || token >= args.tokens) continue;
        const int64_t num_slices = args.shape.num_slices();
        float total = 0.0f;
        BINARYMOS_UNROLL
        for (int group = 0; group < kSumGroups; ++group) {
          if (GroupBegin(group, num_slices) ==
              GroupBegin(group + 1, num_slices)) {
            continue;
          }
          total += v[group][i / kRows][i % kRows];
        }
        float scale = 0.0f;
        for (int e = 0; e < args.shape.experts; ++e) {
          scale = Fma(args.gates[token * args.shape.experts + e],
                      ToFloat(args.out_scale[e * args.shape.out + row]), scale);
        }
        const float value = args.bias == nullptr
                                ? total * scale
                                : Fma(total, scale, ToFloat(args.bias[row]));
        float& y = args.y[token * args.shape.out + row];
        y = args.accumulate ? y + value : value;
      }
    });
  }
};

}  // namespace binarymos::cuda
