// What comes before the multiplication of a binary linear, whatever that is:
// the router and the input scaling.
//
//   g = softmax(x · gateᵀ)   s_in = g · in_scale   u = x ⊙ s_in
//
// in canonical f32 (canonical_math.h).
#pragma once

#include <cstdint>

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/canonical_math.h"

namespace binarymos::cuda {

struct BinaryMosInput {
  static constexpr int kInputsPerThread = kSliceInputs / kWarp;

  const float* x = nullptr;            // [tokens, in]
  const uint16_t* gate = nullptr;      // [E, in] f16, or null: E = 1, g = 1
  const uint16_t* in_scale = nullptr;  // [E, in] f16
  int64_t in = 0;
  int experts = 1;

  // In shared memory.
  struct Shared {
    GroupedSums<kMaxExperts> sums;
    float logits[kMaxExperts];
    float exps[kMaxExperts];
    float gates[kMaxExperts];
  };

  // Sets shared.gates of a token, for all threads. Four threads per expert and
  // slice, four canonical lanes each, 64 sums at a time.
  template <int kThreads, typename Block>
  BINARYMOS_DEVICE void Route(Block& block, int64_t token,
                              Shared& shared) const {
    if (gate == nullptr) {
      block.ForEach([&](int thread) {
        if (thread == 0) shared.gates[0] = 1.0f;
      });
    } else {
      RouteByGate<kThreads>(block, token, shared);
    }
    block.Sync();
  }

  // u of inputs k, k + 32, ..., zeros from `limit` on.
  BINARYMOS_DEVICE void Scale(int64_t token, int64_t k, int64_t limit,
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

 private:
  template <int kThreads, typename Block>
  BINARYMOS_DEVICE void RouteByGate(Block& block, int64_t token,
                                    Shared& shared) const {
    const float* row = x + token * in;
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
};

// The largest |u| of a thread's inputs as bits, which order like |u|;
// infinities and NaN are above the rest.
BINARYMOS_DEVICE uint32_t
LargestBits(const float (&u)[BinaryMosInput::kInputsPerThread]) {
  uint32_t max = 0;
  BINARYMOS_UNROLL
  for (const float one : u) {
    const uint32_t bits = FloatBits(one) & 0x7fffffffu;
    max = bits > max ? bits : max;
  }
  return max;
}

}  // namespace binarymos::cuda
