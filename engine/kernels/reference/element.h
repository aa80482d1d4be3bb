// Reading of single elements.
#pragma once

#include <cstdint>

#include "engine/core/tensor.h"

namespace binarymos::reference {

// Element `index` of a dense tensor, exact. REQUIRES: f32, f16, bf16 or e4m3 in
// host memory, index in range.
double Element(const ConstTensorView& tensor, int64_t index);

}  // namespace binarymos::reference
