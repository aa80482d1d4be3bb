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
// so that a ballot per bit and 32 inputs makes one word of a plane.
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
    const auto product = [&](int expert, int64_t k, float* lanes) {
      const Floats4 four = LoadPack<Floats4>(row + k);
      const Halves4 weights = LoadPack<Halves4>(gate + expert * in + k);
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) {
        lanes[i] = Fma(four.v[i], ToFloat(weights.v[i]), lanes[i]);
      }
    };
    shared.sums.template Add<kThreads>(block, in, experts, product,
                                       shared.logits);
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
      const int64_t slice = first + thread / kWarp;
      max[thread] = 0;
      BINARYMOS_UNROLL
      for (int i = 0; i < kInputsPerThread; ++i) {
        const int64_t k = slice * kSliceInputs + i * kWarp + thread % kWarp;
        const float u =
            slice < end && k < in ? Scaled(block.x(), k, shared.gates) : 0.0f;
        const uint32_t bits = FloatBits(u) & 0x7fffffffu;
        max[thread] = bits > max[thread] ? bits : max[thread];
        inputs[thread].u[i] = u;
      }
    });
    BINARYMOS_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      typename Block::template PerThread<uint32_t> other =
          block.ShuffleXor(max, mask);
      block.ForEach([&](int thread) {
        if (other[thread] > max[thread]) max[thread] = other[thread];
      });
    }

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
    typename Block::template PerThread<Words4> words;
    block.ForEach([&](int thread) { words[thread] = {}; });
    BINARYMOS_NO_UNROLL
    for (int plane = 0; plane < layout.num_planes; ++plane) {
      typename Block::template PerThread<Pack<uint32_t, kSliceWords>> unit;
      BINARYMOS_UNROLL
      for (int i = 0; i < kSliceWords; ++i) {
        typename Block::template PerThread<int32_t> bit;
        block.ForEach(
            [&](int thread) { bit[thread] = q[thread].v[i] >> plane & 1; });
        typename Block::template PerThread<uint32_t> word = block.Ballot(bit);
        block.ForEach([&](int thread) { unit[thread].v[i] = word[thread]; });
      }
      // Thread l keeps half of plane l / 2: words 4 (l % 2) and on.
      block.ForEach([&](int thread) {
        const int lane = thread % kWarp;
        if (lane / 2 != plane) return;
        BINARYMOS_UNROLL
        for (int i = 0; i < 4; ++i) {
          words[thread].v[i] =
              lane % 2 == 0 ? unit[thread].v[i] : unit[thread].v[i + 4];
        }
      });
    }
    BINARYMOS_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      typename Block::template PerThread<int32_t> other =
          block.ShuffleXor(sum, mask);
      block.ForEach([&](int thread) { sum[thread] += other[thread]; });
    }
    block.ForEach([&](int thread) {
      const int64_t slice = first + thread / kWarp;
      const int lane = thread % kWarp;
      if (slice >= end) return;
      if (lane / 2 < layout.num_planes) {
        *reinterpret_cast<Words4*>(planes +
                                   layout.UnitWord(block.x(), slice, lane / 2) +
                                   lane % 2 * 4) = words[thread];
      }
      if (lane == 0) {
        slices[slice * layout.tokens + block.x()] = {
            SliceScale(max[thread], qmax), sum[thread]};
      }
    });
  }

  // x ⊙ s_in.
  BINARYMOS_DEVICE float Scaled(int64_t token, int64_t k,
                                const float* g) const {
    float scale = 0.0f;
    for (int e = 0; e < experts; ++e) {
      scale = Fma(g[e], ToFloat(in_scale[e * in + k]), scale);
    }
    return x[token * in + k] * scale;
  }
};

}  // namespace binarymos::cuda
