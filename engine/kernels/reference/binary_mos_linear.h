// The binary linear with token-adaptive scales, DESIGN section 1, twice: as the
// formula in double, and as the canonical arithmetic in scalar code.
#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// Row-major bits: bit i of byte j is weight 8j + i, 1 means +1.
struct BinaryMosWeights {
  ConstTensorView sign;       // [out, in / 8] u8
  ConstTensorView gate;       // [E, in] f16; absent: E = 1, g = 1
  ConstTensorView in_scale;   // [E, in] f16
  ConstTensorView out_scale;  // [E, out] f16
  ConstTensorView bias;       // [out] f16 or absent
};

struct BinaryMosResult {
  std::vector<double> y;      // [rows, out]
  std::vector<double> gates;  // [rows, E]
};

// ((x ⊙ s_in) · sign(W)ᵀ) ⊙ s_out + bias. x: [rows, in] f32.
BinaryMosResult BinaryMosLinear(const BinaryMosWeights& weights,
                                const ConstTensorView& x);

struct QuantizedBinaryMosResult {
  std::vector<float> y;      // [rows, out]
  std::vector<float> gates;  // [rows, E]
};

// The canonical arithmetic (DESIGN section 6, engine/kernels/cpu/
// binary_mos_linear.h): the same bits as the CPU kernels, NaN payloads aside.
// REQUIRES: 2 <= activation_bits <= 16.
QuantizedBinaryMosResult QuantizedBinaryMosLinear(
    const BinaryMosWeights& weights, const ConstTensorView& x,
    int activation_bits);

}  // namespace binarymos::reference
