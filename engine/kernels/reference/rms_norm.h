#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// x / sqrt(mean(x²) + eps) ⊙ weight, per row. x: [rows, hidden] f32; weight:
// [hidden] f16; result: [rows, hidden].
std::vector<double> RmsNorm(const ConstTensorView& x,
                            const ConstTensorView& weight, double eps);

}  // namespace binarymos::reference
