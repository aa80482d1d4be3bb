// out = gate / (1 + exp(-gate)) ⊙ up.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

// All [size] f32; out may be gate.
void SwiGlu(const CpuContext& context, const float* gate, const float* up,
            int64_t size, float* out);

}  // namespace binarymos::cpu
