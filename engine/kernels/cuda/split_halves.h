// Activations as pairs of halves, which tensor cores multiply with f16 weights
// as if they were f32.
//
// Per row and slice of 256 inputs, 2^e is the power of two at or below the
// largest |x|, and x = 2^e (hi + lo) with hi = f16(x / 2^e), lo the rest as
// f16: off by at most 2^-22 of the slice's largest. Scaling is exact, so
// neither large nor small activations leave what a half can hold.
//
// x [rows, in] f32  ->  halves [slice][row][256 hi, 256 lo], zeros past the
// end; scales [slice][row] 2^e: 0 if all are 0, NaN if one is not finite.
//
// Threads. A warp takes a slice of a row, each lane 8 neighbouring inputs.
//
// Bytes: 4 per input read, 4 written. 64 rows of 4096 inputs are 2 MB: about 2
// us on an H200, most of it launch.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/half_mma.h"

namespace binarymos::cuda {

// Halves of one row and slice: first the upper parts, then the lower ones.
inline constexpr int kSplitSlice = 2 * kSliceInputs;

using Halves8 = Pack<uint16_t, 8>;

struct SplitHalves {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;

  const float* x = nullptr;  // [rows, in]
  int64_t rows = 0;
  int64_t in = 0;
  uint16_t* halves = nullptr;  // [slices, rows, kSplitSlice]
  float* scales = nullptr;     // [slices, rows]

  Grid grid() const { return {CeilDiv(num_slices() * rows, kWarps), 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    const auto unit = [&](int thread) {
      return block.x() * kWarps + thread / kWarp;
    };
    typename Block::template PerThread<Eight> inputs;
    typename Block::template PerThread<uint32_t> largest;
    block.ForEach([&](int thread) {
      inputs[thread] = Load(unit(thread), thread % kWarp);
      // Without the sign, the bits of floats are in the order of the floats,
      // and infinities and NaN above all others.
      uint32_t bits = 0;
      BINARYMOS_UNROLL
      for (int i = 0; i < 8; ++i) {
        const uint32_t each = FloatBits(inputs[thread].v[i]) & 0x7fffffffu;
        bits = each > bits ? each : bits;
      }
      largest[thread] = bits;
    });
    largest = block.WarpMax(largest);
    block.ForEach([&](int thread) {
      if (unit(thread) >= num_slices() * rows) return;
      const Scale scale = ScaleOf(largest[thread]);
      Halves8 upper, lower;
      BINARYMOS_UNROLL
      for (int i = 0; i < 8; ++i) {
        const HalfPair pair =
            SplitIntoHalves(inputs[thread].v[i] * scale.inverse);
        upper.v[i] = pair.hi;
        lower.v[i] = pair.lo;
      }
      uint16_t* to = halves + unit(thread) * kSplitSlice + thread % kWarp * 8;
      *reinterpret_cast<Halves8*>(to) = upper;
      *reinterpret_cast<Halves8*>(to + kSliceInputs) = lower;
      if (thread % kWarp == 0) scales[unit(thread)] = scale.value;
    });
  }

 private:
  using Eight = Pack<float, 8>;
  struct Scale {
    float value;
    float inverse;  // 0: whatever it is, it does not count
  };

  constexpr int64_t num_slices() const { return CeilDiv(in, kSliceInputs); }

  // Units are [slice][row].
  BINARYMOS_DEVICE Eight Load(int64_t unit, int lane) const {
    Eight eight = {};
    const int64_t slice = unit / rows;
    const float* row = x + unit % rows * in;
    BINARYMOS_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int64_t k = slice * kSliceInputs + lane * 8 + i;
      if (k < in) eight.v[i] = row[k];
    }
    return eight;
  }

  // For the largest |x|, as bits.
  static BINARYMOS_DEVICE Scale ScaleOf(uint32_t bits) {
    if (bits >= 0x7f800000u) return {BitsFloat(0x7fc00000u), 0.0f};
    if (bits == 0) return {0.0f, 0.0f};
    // Both powers of two are normal numbers.
    uint32_t exponent = bits >> 23;
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    return {BitsFloat(exponent << 23), BitsFloat((254 - exponent) << 23)};
  }
};

}  // namespace binarymos::cuda
