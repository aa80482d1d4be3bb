// What the kernels of the binary linear read of a layer.
#pragma once

#include <cstdint>

namespace binarymos::cpu {

inline constexpr int kMaxBinaryMosExperts = 64;

// Plain, so that code compiled for AVX2 instantiates nothing
// (canonical_math.h).
struct BinaryMosLayer {
  int64_t in_features = 0;
  int64_t out_features = 0;
  int num_experts = 0;                  // at least 1
  int64_t num_slices = 0;               // of 256 inputs
  int64_t num_blocks = 0;               // of 64 rows
  const uint8_t* sign = nullptr;        // layout: binary_mos_linear_kernels.h
  const uint16_t* gate = nullptr;       // [E, in] f16 or null
  const uint16_t* in_scale = nullptr;   // [E, in] f16
  const uint16_t* out_scale = nullptr;  // [E, out] f16
  const uint16_t* bias = nullptr;       // [out] f16 or null
};

}  // namespace binarymos::cpu
