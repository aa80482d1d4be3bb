// Random weights, made faster than memory is read elsewhere.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/core/float16.h"

namespace binarymos {

// `n` f16 numbers, uniform in (-scale, scale) at 1,024 steps, the same for the
// same seed.
inline std::vector<uint16_t> RandomHalves(int64_t n, float scale,
                                          uint64_t seed) {
  uint16_t table[1024];
  for (int i = 0; i < 1024; ++i) {
    table[i] =
        FloatToHalf(scale * (2.0f * static_cast<float>(i) - 1023.0f) / 1024);
  }
  std::vector<uint16_t> halves(n);
  uint64_t state = 0x9e3779b97f4a7c15u * (seed + 1);
  for (uint16_t& half : halves) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    half = table[state >> 54];
  }
  return halves;
}

}  // namespace binarymos
