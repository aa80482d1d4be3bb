// y = x Wᵀ + bias with W in f16: lm_head, and the layers of Float16 models.
#pragma once

#include <cstdint>

#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

struct Float16LinearCall {
  const uint16_t* weight = nullptr;  // [out, in] f16
  const uint16_t* bias = nullptr;    // [out] f16 or null
  int64_t in = 0;
  int64_t out = 0;
  const float* x = nullptr;  // [rows, in]
  int64_t rows = 0;
  bool accumulate = false;  // y += ... instead of y = ...
  float* y = nullptr;       // [rows, out], not overlapping x
};

// The order over K is fixed (Dot in canonical_math.h): a row of y depends, bit
// for bit, only on its row of x.
void Float16Linear(const CpuContext& context, const Float16LinearCall& call);

}  // namespace binarymos::cpu
