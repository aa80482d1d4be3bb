// From scaled activations to integers and bit planes: what the kernels of the
// binary linear share.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

// Whether the largest |u| of a slice, given as its bits, is at least 2^-100 and
// finite. Bits of |u| order like |u|; infinities and NaN are above the rest.
BINARYMOS_DEVICE bool IsNormalMax(uint32_t max) {
  return max >= 0x0d800000u && max < 0x7f800000u;
}

// PreparedSlice::scale.
BINARYMOS_DEVICE float SliceScale(uint32_t max, float qmax) {
  if (IsNormalMax(max)) return BitsFloat(max) / qmax;
  return max < 0x7f800000u ? 0.0f : BitsFloat(0x7fc00000u);
}

// To nearest, ties to even. Adding 1.5 * 2^23 leaves the integer in the low
// bits, in two's complement.
BINARYMOS_DEVICE int32_t RoundToInt(float a) {
  return static_cast<int32_t>(FloatBits(a + 0x1.8p23f) - 0x4b400000u);
}

// Bit i of lane l becomes bit l of lane i, in every warp: five exchanges, each
// of blocks of bits half as large.
template <typename Block>
BINARYMOS_DEVICE void TransposeInWarps(
    Block& block, typename Block::template PerThread<uint32_t>& bits) {
  BINARYMOS_UNROLL
  for (int width = kWarp / 2; width > 0; width /= 2) {
    // Bits whose number has no `width` in it.
    const uint32_t low = width == 16  ? 0x0000ffffu
                         : width == 8 ? 0x00ff00ffu
                         : width == 4 ? 0x0f0f0f0fu
                         : width == 2 ? 0x33333333u
                                      : 0x55555555u;
    typename Block::template PerThread<uint32_t> other =
        block.ShuffleXor(bits, width);
    block.ForEach([&](int thread) {
      bits[thread] =
          (thread & width) == 0
              ? (bits[thread] & low) | (other[thread] & low) << width
              : (bits[thread] & ~low) | (other[thread] & ~low) >> width;
    });
  }
}

}  // namespace binarymos::cuda
