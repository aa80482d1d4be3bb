#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// x Wᵀ with every row of `weight` rounded to 8 bits: to a multiple of its
// largest absolute value / 127, the nearest, ties to an even one. The scale is
// rounded to f32. x: [rows, in] f32; weight: [out, in] f16; result: [rows,
// out].
std::vector<double> Int8Linear(const ConstTensorView& x,
                               const ConstTensorView& weight);

}  // namespace binarymos::reference
