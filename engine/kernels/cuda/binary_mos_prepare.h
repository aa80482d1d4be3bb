// First half of the binary linear: router, input scaling, quantization, planes.
//
//   g = softmax(x · gateᵀ)   s_in = g · in_scale   u = x ⊙ s_in
//   q = round(u * (qmax / m)), m = max |u| of the slice; planes of q
//
// x [tokens, in] f32  ->  gates [tokens, E] f32, planes (binary_mos_layout.h),
// slices [num_slices, tokens]
//
// Threads. A block has one token and a part of its slices; every block of a
// token computes the router anew, which is cheaper than waiting for another.
// Router: four threads per expert and slice, four canonical lanes each, 64
// sums at a time. Then a warp per slice: thread l holds inputs l, l + 32, ...,
// and a transposition of 32 x 32 bits makes a word of a plane of 32 inputs.
//
// Bytes per token and block: 4 in (x, twice) + 2 E in (gate), plus 2 E in
// (in_scale) and 2 in (planes, P = 16) per token. 4096 inputs, E = 4: 48 KiB
// + 40 KiB, from L2 as a rule. Predicted for one token on an H200: 2.2 to 3 us:
// launch, two waits for memory, softmax, planes.
#pragma once

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_mos_quantize.h"
#include "engine/kernels/cuda/canonical_math.h"

namespace binarymos::cuda {

struct PrepareBinaryMos {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kInputsPerThread = kSliceInputs / kWarp;

  const float* x = nullptr;            // [tokens, in]
  const uint16_t* gate = nullptr;      // [E, in] f16, or null: E = 1, g = 1
  const uint16_t* in_scale = nullptr;  // [E, in] f16
  int64_t in = 0;
  int experts = 1;
  float qmax = 0.0f;
  int num_parts = 1;                // blocks per token
  PlaneLayout layout;               // tokens, slices, planes
  uint32_t* planes = nullptr;       // layout
  PreparedSlice* slices = nullptr;  // [num_slices, tokens]
  float* gates = nullptr;           // [tokens, E]

  Grid grid() const { return {layout.tokens, num_parts}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    if (gate == nullptr) {
      block.ForEach([&](int thread) {
        if (thread == 0) shared.gates[0] = 1.0f;
      });
    } else {
      Route(block, shared);
    }
    block.Sync();
    if (block.y() == 0) {
      block.ForEach([&](int thread) {
        if (thread < experts) {
          gates[block.x() * experts + thread] = shared.gates[thread];
        }
      });
    }
    const int64_t begin = block.y() * layout.num_slices / num_parts;
    const int64_t end = (block.y() + 1) * layout.num_slices / num_parts;
    for (int64_t s = begin; s < end; s += kWarps) {
      PrepareSlices(block, shared, s, end);
    }
  }

 private:
  struct Shared {
    GroupedSums<kMaxExperts> sums;
    float logits[kMaxExperts];
    float exps[kMaxExperts];
    float gates[kMaxExperts];
  };

  // shared.gates, for threads past the next Sync().
  template <typename Block>
  BINARYMOS_DEVICE void Route(Block& block, Shared& shared) const {
    const float* row = x + block.x() * in;
    const auto load = [&](int expert, int64_t k) {
      const Halves4 weights = LoadPack<Halves4>(gate + expert * in + k);
      typename GroupedSums<kMaxExperts>::Factors factors;
      factors.a = LoadPack<Floats4>(row + k);
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) factors.b.v[i] = ToFloat(weights.v[i]);
      return factors;
    };
    shared.sums.template Add<kThreads>(block, in, experts, load, shared.logits);
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= experts) return;
      float max = shared.logits[0];
      for (int e = 1; e < experts; ++e) max = Larger(shared.logits[e], max);
      shared.exps[thread] = Exp(shared.logits[thread] - max);
    });
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= experts) return;
      float sum = 0.0f;
      for (int e = 0; e < experts; ++e) sum += shared.exps[e];
      shared.gates[thread] = shared.exps[thread] / sum;
    });
  }

  // Slices [first, first + kWarps), those below `end`, a warp each.
  template <typename Block>
  BINARYMOS_DEVICE void PrepareSlices(Block& block, const Shared& shared,
                                      int64_t first, int64_t end) const {
    struct Inputs {
      float u[kInputsPerThread];
    };
    typename Block::template PerThread<Inputs> inputs;
    // The bits of |u| order like |u|; infinities and NaN are above the rest.
    typename Block::template PerThread<uint32_t> max;
    block.ForEach([&](int thread) {
      const int64_t k =
          (first + thread / kWarp) * kSliceInputs + thread % kWarp;
      const int64_t limit = first + thread / kWarp < end ? in : 0;
      ScaleInputs(block.x(), k, limit, shared.gates, inputs[thread].u);
      max[thread] = 0;
      BINARYMOS_UNROLL
      for (int i = 0; i < kInputsPerThread; ++i) {
        const uint32_t bits = FloatBits(inputs[thread].u[i]) & 0x7fffffffu;
        max[thread] = bits > max[thread] ? bits : max[thread];
      }
    });
    max = block.WarpMax(max);

    struct Integers {
      int32_t v[kInputsPerThread];
    };
    typename Block::template PerThread<Integers> q;
    typename Block::template PerThread<int32_t> sum;
    block.ForEach([&](int thread) {
      const bool normal = IsNormalMax(max[thread]);
      const float inverse = normal ? qmax / BitsFloat(max[thread]) : 0.0f;
      sum[thread] = 0;
      BINARYMOS_UNROLL
      for (int i = 0; i < kInputsPerThread; ++i) {
        q[thread].v[i] = normal ? RoundToInt(inputs[thread].u[i] * inverse) : 0;
        sum[thread] += q[thread].v[i];
      }
    });
    sum = block.WarpSum(sum);
    // Of inputs 32 i and on in the lower half, 32 (i + 4) and on in the upper:
    // lane l gets plane l % 16 and words 4 (l / 16) to 4 (l / 16) + 3.
    typename Block::template PerThread<Words4> words;
    BINARYMOS_UNROLL
    for (int i = 0; i < 4; ++i) {
      typename Block::template PerThread<uint32_t> bits;
      block.ForEach([&](int thread) {
        const int32_t* v = q[thread].v;
        bits[thread] = (static_cast<uint32_t>(v[i]) & 0xffffu) |
                       static_cast<uint32_t>(v[i + 4]) << 16;
      });
      TransposeInWarps(block, bits);
      block.ForEach([&](int thread) { words[thread].v[i] = bits[thread]; });
    }
    block.ForEach([&](int thread) {
      const int64_t slice = first + thread / kWarp;
      const int lane = thread % kWarp;
      if (slice >= end) return;
      if (lane % 16 < layout.num_planes) {
        *reinterpret_cast<Words4*>(
            planes + layout.UnitWord(block.x(), slice, lane % 16) +
            lane / 16 * 4) = words[thread];
      }
      if (lane == 0) {
        slices[slice * layout.tokens + block.x()] = {
            SliceScale(max[thread], qmax), sum[thread]};
      }
    });
  }

  // u = x ⊙ s_in of inputs k, k + 32, ..., zeros from `limit` on.
  BINARYMOS_DEVICE void ScaleInputs(int64_t token, int64_t k, int64_t limit,
                                    const float* g,
                                    float (&u)[kInputsPerThread]) const {
    float scale[kInputsPerThread];
    BINARYMOS_UNROLL
    for (int i = 0; i < kInputsPerThread; ++i) {
      u[i] = k + i * kWarp < limit ? x[token * in + k + i * kWarp] : 0.0f;
      scale[i] = 0.0f;
    }
    BINARYMOS_UNROLL_BY_4
    for (int e = 0; e < experts; ++e) {
      BINARYMOS_UNROLL
      for (int i = 0; i < kInputsPerThread; ++i) {
        const uint16_t half = k + i * kWarp < limit
                                  ? in_scale[e * in + k + i * kWarp]
                                  : uint16_t{0};
        scale[i] = Fma(g[e], ToFloat(half), scale[i]);
      }
    }
    BINARYMOS_UNROLL
    for (int i = 0; i < kInputsPerThread; ++i) u[i] *= scale[i];
  }
};

}  // namespace binarymos::cuda
