// out = x / sqrt(mean(x²) + eps) ⊙ weight, per row.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

// x, out: [rows, hidden] f32, may be the same; weight: [hidden] f16.
void RmsNorm(const CpuContext& context, const float* x, const uint16_t* weight,
             float eps, int64_t rows, int64_t hidden, float* out);

}  // namespace binarymos::cpu
