// First half of the binary linear: router, input scaling, quantization, planes.
//
//   g = softmax(x · gateᵀ)   s_in = g · in_scale   u = x ⊙ s_in
//   q = round(u * (qmax / m)), m = max |u| of the slice; planes of q
//
// x [tokens, in] f32  ->  gates [tokens, E] f32, planes (binary_mos_layout.h),
// slices [num_slices, tokens]
//
// Threads. A block has one token and a part of its slices; every block of a
// token computes the router anew (binary_mos_input.h), which is cheaper than
// waiting for another. Then a warp per slice: thread l holds inputs l, l + 32,
// ..., and a transposition of 32 x 32 bits makes a word of a plane of 32
// inputs.
//
// Bytes per token and block: 4 in (x, twice) + 2 E in (gate), plus 2 E in
// (in_scale) and 2 in (planes, P = 16) per token. 4096 inputs, E = 4: 48 KiB
// + 40 KiB, from L2 as a rule. Predicted for one token on an H200: 2.2 to 3 us:
// launch, two waits for memory, softmax, planes.
#pragma once

#include "engine/kernels/cuda/binary_mos_input.h"
#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_mos_quantize.h"

namespace binarymos::cuda {

struct PrepareBinaryMos {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kInputsPerThread = BinaryMosInput::kInputsPerThread;

  BinaryMosInput input;
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
    input.Route<kThreads>(block, block.x(), shared);
    if (block.y() == 0) {
      block.ForEach([&](int thread) {
        if (thread < input.experts) {
          gates[block.x() * input.experts + thread] = shared.gates[thread];
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
  using Shared = BinaryMosInput::Shared;

  // Slices [first, first + kWarps), those below `end`, a warp each.
  template <typename Block>
  BINARYMOS_DEVICE void PrepareSlices(Block& block, const Shared& shared,
                                      int64_t first, int64_t end) const {
    struct Inputs {
      float u[kInputsPerThread];
    };
    typename Block::template PerThread<Inputs> inputs;
    typename Block::template PerThread<uint32_t> max;
    block.ForEach([&](int thread) {
      const int64_t k =
          (first + thread / kWarp) * kSliceInputs + thread % kWarp;
      const int64_t limit = first + thread / kWarp < end ? input.in : 0;
      input.Scale(block.x(), k, limit, shared.gates, inputs[thread].u);
      max[thread] = LargestBits(inputs[thread].u);
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
};

}  // namespace binarymos::cuda
