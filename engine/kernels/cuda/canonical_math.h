// The canonical f32 arithmetic of DESIGN section 6, one lane at a time:
// engine/kernels/cpu/canonical_math.h has the definitions and the reasons. A
// long sum has 16 strided lanes; here a thread holds one of them, or four
// neighbours, or all.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kSumLanes = 16;

// a > b ? a : b, so that b is the result if either is NaN.
BINARYMOS_DEVICE float Larger(float a, float b) { return a > b ? a : b; }

BINARYMOS_DEVICE float Infinity() { return BitsFloat(0x7f800000u); }

// e^x, the same bits as cpu::Exp.
BINARYMOS_DEVICE float Exp(float value) {
  // The order of the operands lets NaN through.
  const float above = Larger(-104.0f, value);
  const float x = 89.0f < above ? 89.0f : above;
  const float magic = 0x1.8p23f;  // adding it rounds to an integer
  const float t = Fma(x, 0x1.715476p+0f, magic);
  const float k = t - magic;
  float r = Fma(k, -0x1.62e4p-1f, x);
  r = Fma(k, -0x1.7f7d1cp-20f, r);
  float p = 1.0f / 5040;
  p = Fma(p, r, 1.0f / 720);
  p = Fma(p, r, 1.0f / 120);
  p = Fma(p, r, 1.0f / 24);
  p = Fma(p, r, 1.0f / 6);
  p = Fma(p, r, 0.5f);
  p = Fma(p, r, 1.0f);
  p = Fma(p, r, 1.0f);
  // 2^k in two factors: k reaches -151 and 128, outside what one float holds.
  const auto exponent = static_cast<int32_t>(FloatBits(t) - 0x4b400000u);
  const int32_t half = exponent >> 1;
  const int32_t rest = exponent - half;
  return p * BitsFloat(static_cast<uint32_t>(half + 127) << 23) *
         BitsFloat(static_cast<uint32_t>(rest + 127) << 23);
}

// lanes[i] += lanes[i + kWidth] for i below kWidth.
template <int kWidth>
BINARYMOS_DEVICE void AddHalves(float (&lanes)[kSumLanes]) {
  BINARYMOS_UNROLL
  for (int i = 0; i < kWidth; ++i) lanes[i] += lanes[i + kWidth];
}

// The tree over 16 lanes: i and i + 8, then i and i + 4, and so on. Written
// out, so that lanes in registers stay there.
BINARYMOS_DEVICE float ReduceAdd(float (&lanes)[kSumLanes]) {
  AddHalves<8>(lanes);
  AddHalves<4>(lanes);
  AddHalves<2>(lanes);
  AddHalves<1>(lanes);
  return lanes[0];
}

// The same tree where four threads in a row (a quad: lane ^ 1, lane ^ 2) hold
// four neighbouring lanes each: on return every thread of the quad has the sum
// in sums[thread].
template <typename Block>
BINARYMOS_DEVICE void ReduceAddInQuads(
    Block& block, typename Block::template PerThread<Floats4>& lanes,
    typename Block::template PerThread<float>& sums) {
  BINARYMOS_UNROLL
  for (int mask = 2; mask > 0; mask /= 2) {
    typename Block::template PerThread<Floats4> others =
        block.ShuffleXor(lanes, mask);
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) lanes[thread].v[i] += others[thread].v[i];
    });
  }
  block.ForEach([&](int thread) {
    const Floats4& four = lanes[thread];
    sums[thread] = (four.v[0] + four.v[2]) + (four.v[1] + four.v[3]);
  });
}

}  // namespace binarymos::cuda
