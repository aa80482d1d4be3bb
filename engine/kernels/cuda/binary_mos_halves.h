// First half of the fast binary linear: router, input scaling, rounding to f16.
//
//   u = x ⊙ s_in (binary_mos_input.h)
//   half = f16(u 2^n), scale = 2^-n; the largest |half| of a token is in
//   [2^14, 2^15]
//
// x [tokens, in] f32  ->  gates [tokens, E] f32, scales [tokens] f32,
// halves [tokens, slices of 256 inputs] f16, zeros past `in`
//
// One power of two per token changes no digit of u, and leaves f16 its 11 bits
// down to 2^-29 of the token's largest: massive activations cost the others
// nothing. The sum of 16,384 such halves is below 2^29, far inside f32. A token
// with an infinity or NaN gets the scale NaN, one of zeros (below 2^-100) the
// scale 0.
//
// Order. FastBinaryMos feeds its tensor cores 16 inputs of a slice at a time,
// step 0 to 15, taken from the sign words where they are cheapest to reach:
// bits 15 - step and 31 - step of each of the 8 words. Halves are stored as it
// reads them: [step][16], where place 8 h + 2 t + b of a step is bit
// 15 - step + 16 b of word 2 t + h (HalfPlace()). For the fragments of
// half_mma.h that is: word 2 t gives a0, word 2 t + 1 gives a2.
//
// Threads. A block has one token, a warp a slice at a time: thread l holds bit
// l of each word; lanes l and l + 16 have a step together, and after an
// exchange one store of 16 bytes each. Twice through x: first for the largest.
//
// Bytes per token: 12 in (x), 6 E in (gate, in_scale twice), 2 in (halves).
// 2,048 tokens of 4,096 inputs, E = 4, on an H200: 320 MB from L2, 60 us at 5.5
// TB/s; predicted 70 us, a third of the multiplication. Tokens that share a
// block would share the 6 E, and x in shared memory halve the rest: the next
// step.
#pragma once

#include "engine/kernels/cuda/binary_mos_input.h"
#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_mos_quantize.h"

namespace binarymos::cuda {

inline constexpr int kStepInputs = 16;
inline constexpr int kSliceSteps = kSliceInputs / kStepInputs;

// Where input i of a slice is.
constexpr int HalfPlace(int i) {
  const int word = i / 32;
  const int bit = i % 32;
  const int step = 15 - bit % 16;
  return step * kStepInputs + word % 2 * 8 + word / 2 * 2 + bit / 16;
}

struct PrepareHalves {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kInputsPerThread = BinaryMosInput::kInputsPerThread;

  BinaryMosInput input;
  int64_t tokens = 0;
  uint16_t* halves = nullptr;  // [tokens, slices, 16 steps, 16]
  float* scales = nullptr;     // [tokens]
  float* gates = nullptr;      // [tokens, E]

  Grid grid() const { return {tokens, 1}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    input.Route<kThreads>(block, block.x(), shared.input);
    block.ForEach([&](int thread) {
      if (thread < input.experts) {
        gates[block.x() * input.experts + thread] = shared.input.gates[thread];
      }
    });
    FindLargest(block, shared);
    block.Sync();
    const int64_t num_slices = CeilDiv(input.in, kSliceInputs);
    for (int64_t s = 0; s < num_slices; s += kWarps) {
      WriteSlices(block, shared, s, num_slices);
    }
    block.ForEach([&](int thread) {
      if (thread == 0) scales[block.x()] = ScaleOf(Largest(shared));
    });
  }

 private:
  struct Shared {
    BinaryMosInput::Shared input;
    uint32_t largest[kWarps];  // bits of |u|
  };
  struct Inputs {
    float u[kInputsPerThread];
  };

  // For threads past the next Sync().
  template <typename Block>
  BINARYMOS_DEVICE void FindLargest(Block& block, Shared& shared) const {
    typename Block::template PerThread<uint32_t> max;
    block.ForEach([&](int thread) {
      max[thread] = 0;
      for (int64_t k = FirstInput(thread, 0); k < input.in;
           k += kWarps * kSliceInputs) {
        Inputs inputs;
        input.Scale(block.x(), k, input.in, shared.input.gates, inputs.u);
        const uint32_t bits = LargestBits(inputs.u);
        max[thread] = bits > max[thread] ? bits : max[thread];
      }
    });
    max = block.WarpMax(max);
    block.ForEach([&](int thread) {
      if (thread % kWarp == 0) shared.largest[thread / kWarp] = max[thread];
    });
  }

  static BINARYMOS_DEVICE uint32_t Largest(const Shared& shared) {
    uint32_t max = 0;
    BINARYMOS_UNROLL
    for (const uint32_t one : shared.largest) max = one > max ? one : max;
    return max;
  }

  // 2^n and 2^-n for the bits of the largest |u|, whose exponent is at least
  // -100: neither leaves the normal numbers.
  static BINARYMOS_DEVICE float PowerFor(uint32_t largest) {
    if (!IsNormalMax(largest)) return 0.0f;
    return BitsFloat((268 - (largest >> 23)) << 23);
  }
  static BINARYMOS_DEVICE float ScaleOf(uint32_t largest) {
    if (largest >= 0x7f800000u) return BitsFloat(0x7fc00000u);
    if (!IsNormalMax(largest)) return 0.0f;
    return BitsFloat(((largest >> 23) - 14) << 23);
  }

  static BINARYMOS_DEVICE int64_t FirstInput(int thread, int64_t first_slice) {
    return (first_slice + thread / kWarp) * kSliceInputs + thread % kWarp;
  }

  // Slices [first, first + kWarps), those below `end`, a warp each.
  template <typename Block>
  BINARYMOS_DEVICE void WriteSlices(Block& block, const Shared& shared,
                                    int64_t first, int64_t end) const {
    // Of a thread's bit in words 0, 2, 4, 6 and 1, 3, 5, 7: two to a word.
    typename Block::template PerThread<Words2> even, odd, sent;
    block.ForEach([&](int thread) {
      const uint32_t largest = Largest(shared);
      const bool normal = IsNormalMax(largest);
      const float power = PowerFor(largest);
      Inputs inputs;
      const int64_t limit = first + thread / kWarp < end ? input.in : 0;
      input.Scale(block.x(), FirstInput(thread, first), limit,
                  shared.input.gates, inputs.u);
      uint32_t half[kInputsPerThread];
      BINARYMOS_UNROLL
      for (int i = 0; i < kInputsPerThread; ++i) {
        half[i] = normal ? ToHalf(inputs.u[i] * power) : 0;
      }
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        even[thread].v[i] = half[4 * i] | half[4 * i + 2] << 16;
        odd[thread].v[i] = half[4 * i + 1] | half[4 * i + 3] << 16;
      }
      sent[thread] = thread % kWarp < 16 ? odd[thread] : even[thread];
    });
    // Lane l < 16 ends with the even words' bits l and l + 16, lane l + 16 with
    // the odd ones'.
    auto received = block.ShuffleXor(sent, 16);
    block.ForEach([&](int thread) {
      const int lane = thread % kWarp;
      const Words2 low = lane < 16 ? even[thread] : received[thread];
      const Words2 high = lane < 16 ? received[thread] : odd[thread];
      Words4 words;
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        words.v[2 * i] = (low.v[i] & 0xffffu) | high.v[i] << 16;
        words.v[2 * i + 1] = low.v[i] >> 16 | (high.v[i] & 0xffff0000u);
      }
      const int64_t slice = first + thread / kWarp;
      if (slice >= end) return;
      *reinterpret_cast<Words4*>(
          halves + (block.x() * end + slice) * kSliceInputs +
          HalfPlace(lane % 16 + (lane < 16 ? 0 : 32))) = words;
    });
  }
};

}  // namespace binarymos::cuda
