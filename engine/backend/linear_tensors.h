// The weights of one linear layer as they stand in the model directory.
#pragma once

#include <cstdint>

#include "engine/core/tensor.h"

namespace binarymos {

enum class LinearKind : uint8_t {
  kFloat16,    // y = x Wᵀ + bias
  kBinaryMos,  // y = ((x ⊙ s_in) sign(W)ᵀ) ⊙ s_out + bias, DESIGN section 1
  // y = x Wᵀ, W rounded to 8 bits with a scale per row when it is packed. Only
  // where Backend::Supports says so.
  kInt8,
};

// Host views into the mapped checkpoint, valid during Backend::Pack. Shapes
// were checked by whoever fills this in (engine/model/weights.cc).
struct LinearTensors {
  LinearKind kind = LinearKind::kBinaryMos;
  int64_t in_features = 0;
  int64_t out_features = 0;
  int num_experts = 1;

  // kFloat16, kInt8
  ConstTensorView weight;  // [out, in] f16

  // kBinaryMos. Row-major bits: bit i of byte j is weight 8j + i, 1 means +1.
  ConstTensorView sign;       // [out, in / 8] u8
  ConstTensorView gate;       // [num_experts, in] f16; absent for one expert
                              // without a router (OneBit): g = 1
  ConstTensorView in_scale;   // [num_experts, in] f16
  ConstTensorView out_scale;  // [num_experts, out] f16

  ConstTensorView bias;  // [out] f16 or absent
};

}  // namespace binarymos
