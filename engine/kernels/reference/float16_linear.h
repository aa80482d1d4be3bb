#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// x Wᵀ + bias. x: [rows, in] f32; weight: [out, in] f16; bias: [out] f16 or
// absent; result: [rows, out].
std::vector<double> Float16Linear(const ConstTensorView& x,
                                  const ConstTensorView& weight,
                                  const ConstTensorView& bias);

}  // namespace binarymos::reference
