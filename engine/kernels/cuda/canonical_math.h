// The canonical f32 arithmetic of DESIGN section 6, one lane at a time:
// engine/kernels/cpu/canonical_math.h has the definitions and the reasons. A
// long sum has 16 strided lanes; here a thread holds one of them, or four
// neighbours, or all. Sums over a layer's inputs are cut into slices and groups
// of slices.
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kSumLanes = 16;
inline constexpr int kSliceInputs = 256;
inline constexpr int kSumGroups = 8;  // of slices

// The first slice of a group; the group ends where the next begins.
BINARYMOS_DEVICE int64_t GroupBegin(int64_t group, int64_t num_slices) {
  return group * num_slices / kSumGroups;
}

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

// x / (1 + e^-x), the same bits as cpu::SwiGlu's.
BINARYMOS_DEVICE float Silu(float x) { return x / (1.0f + Exp(0.0f - x)); }

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

// Up to kMaxSums sums over the inputs of a layer, the same bits as
// cpu::GroupedDot.
template <int kMaxSums>
class GroupedSums {
 public:
  struct Factors {
    Floats4 a, b;
  };

  // Sets totals[0 .. count - 1], in shared memory too, for the threads that
  // have passed a Sync() after it. load(sum, k) is a Factors of what is
  // multiplied for inputs k to k + 3, zeros past the end; k is a multiple of 4
  // below num_inputs. Four threads make the sum of a slice: a chain of 16, its
  // loads eight at a time.
  template <int kThreads, typename Block, typename Load>
  BINARYMOS_DEVICE void Add(Block& block, int64_t num_inputs, int count,
                            Load load, float* totals) {
    const int64_t num_slices = CeilDiv(num_inputs, kSliceInputs);
    const int per_pass = kBuffer / count;
    block.ForEach([&](int thread) {
      for (int i = thread; i < kSumGroups * count; i += kThreads) {
        groups_[i / count][i % count] = 0.0f;
      }
    });
    for (int64_t first = 0; first < num_slices; first += per_pass) {
      const int64_t left = num_slices - first;
      const int slices = left < per_pass ? static_cast<int>(left) : per_pass;
      block.Sync();  // everyone has read the pass before
      for (int i = 0; i < slices * count; i += kThreads / 4) {
        AddSlices(block, first, i, slices * count, count, num_inputs, load);
      }
      block.Sync();
      block.ForEach([&](int thread) {
        for (int i = thread; i < kSumGroups * count; i += kThreads) {
          AddToGroup(i / count, i % count, first, first + slices, count,
                     num_slices);
        }
      });
    }
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= count) return;
      float total = 0.0f;
      BINARYMOS_UNROLL
      for (int group = 0; group < kSumGroups; ++group) {
        total += groups_[group][thread];
      }
      totals[thread] = total;
    });
  }

 private:
  static constexpr int kBuffer = 512;
  static constexpr int kLoads = 8;
  static_assert(kMaxSums <= kBuffer);

  // Slice sums begin, begin + 1, ... of a pass, a quad of threads each.
  template <typename Block, typename Load>
  BINARYMOS_DEVICE void AddSlices(Block& block, int64_t first, int begin,
                                  int end, int count, int64_t num_inputs,
                                  Load& load) {
    typename Block::template PerThread<Floats4> lanes;
    typename Block::template PerThread<float> sum;
    block.ForEach([&](int thread) {
      lanes[thread] = {};
      const int i = begin + thread / 4;
      if (i >= end) return;
      const int64_t k = (first + i / count) * kSliceInputs + thread % 4 * 4;
      const int which = i % count;
      BINARYMOS_UNROLL
      for (int begin_step = 0; begin_step < kSliceInputs;
           begin_step += kLoads * kSumLanes) {
        Factors factors[kLoads];
        BINARYMOS_UNROLL
        for (int j = 0; j < kLoads; ++j) {
          const int64_t at = k + begin_step + j * kSumLanes;
          factors[j] = at < num_inputs ? load(which, at) : Factors{};
        }
        BINARYMOS_UNROLL
        for (int j = 0; j < kLoads; ++j) {
          BINARYMOS_UNROLL
          for (int n = 0; n < 4; ++n) {
            lanes[thread].v[n] =
                Fma(factors[j].a.v[n], factors[j].b.v[n], lanes[thread].v[n]);
          }
        }
      }
    });
    ReduceAddInQuads(block, lanes, sum);
    block.ForEach([&](int thread) {
      const int i = begin + thread / 4;
      if (thread % 4 == 0 && i < end) slices_[i] = sum[thread];
    });
  }

  // Adds the slices [begin, end) that are in the group.
  BINARYMOS_DEVICE void AddToGroup(int group, int sum, int64_t begin,
                                   int64_t end, int count, int64_t num_slices) {
    int64_t s = GroupBegin(group, num_slices);
    if (s < begin) s = begin;
    const int64_t group_end = GroupBegin(group + 1, num_slices);
    float total = groups_[group][sum];
    for (; s < end && s < group_end; ++s) {
      total += slices_[(s - begin) * count + sum];
    }
    groups_[group][sum] = total;
  }

  float slices_[kBuffer];  // [slice of the pass][sum]
  float groups_[kSumGroups][kMaxSums];
};

}  // namespace binarymos::cuda
