#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// gate / (1 + exp(-gate)) ⊙ up. All of the same shape, f32.
std::vector<double> SwiGlu(const ConstTensorView& gate,
                           const ConstTensorView& up);

}  // namespace binarymos::reference
