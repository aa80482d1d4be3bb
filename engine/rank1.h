// Where untrained scales come from.
#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos {

// outer(out_scale, in_scale) is the best rank-1 approximation of |W|: its
// leading singular vectors, each with the square root of the singular value, as
// BinaryMoS training starts its experts.
struct Rank1 {
  std::vector<float> out_scale;  // [out], >= 0
  std::vector<float> in_scale;   // [in], >= 0
};

// `weight` is [out, in], finite floats, host. Needs a copy of it in f32. Power
// iteration until no entry changes by more than 1e-7 of the largest, or 300
// rounds, after which the best two values are so close that either serves.
Rank1 Rank1OfAbs(const ConstTensorView& weight);

}  // namespace binarymos
