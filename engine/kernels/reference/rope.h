#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// Rotates the pairs (d, d + head_dim / 2) of every head by the angle of the
// token's position. x: [tokens, heads * head_dim] f32; cos, sin: [positions of
// the model, head_dim / 2] f32; result: shape of x.
std::vector<double> Rope(const ConstTensorView& x, int head_dim,
                         std::span<const int32_t> positions,
                         const ConstTensorView& cos,
                         const ConstTensorView& sin);

}  // namespace binarymos::reference
