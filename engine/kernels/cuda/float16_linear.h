// y = x Wᵀ + bias with W in f16: lm_head, and the layers of Float16 models. For
// up to 8 rows; float16_batch.h has the rest, with the same arithmetic.
//
// x as pairs of halves (split_halves.h), W [out, in] f16  ->  y [rows, out] f32
//
// Sums. A slice of 256 inputs is 16 steps of HalfMma with 16 inputs, upper
// halves, then lower ones, from zero. Its sum times its power of two is added
// to the group's, in slices ascending, and the 8 groups are added ascending.
// That order does not depend on rows or blocks; inside a step the tensor core's
// own holds (half_mma.h).
//
// Threads. A block has 16 outputs, the rows of A, and each of its 8 warps one
// group. The columns of B are the rows of x. The order of k inside a step is
// free as long as A and B agree: for every 32 inputs lane 4 g + t holds inputs
// 8 t to 8 t + 7 of outputs g and g + 8 and of column g, 16 bytes each, which
// are two steps.
//
// Bytes: 2 in out, and 4 in out from L1 or L2 for x. lm_head of the 7B model
// (4096 x 32000, 262 MB) on an H200: 61 us at 4.3 TB/s; predicted 75 us for 1
// to 8 rows, of which 131 M / 2048 * 4 MMAs take 10.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/half_mma.h"
#include "engine/kernels/cuda/split_halves.h"

namespace binarymos::cuda {

// What a lane holds of 32 inputs: inputs 8 t to 8 t + 7.
struct Float16Weights {
  Words4 rows[2];  // of outputs g and g + 8
};
struct SplitInputs {
  Words4 upper, lower;  // of column g
};

struct Float16Args {
  static constexpr int kChunk = 32;  // inputs that lanes hold at once

  const uint16_t* halves = nullptr;  // [slices, rows, kSplitSlice]
  const float* scales = nullptr;     // [slices, rows]
  const uint16_t* weight = nullptr;  // [out, in] f16
  const uint16_t* bias = nullptr;    // [out] f16 or null
  int64_t rows = 0;
  int64_t in = 0;
  int64_t out = 0;
  bool accumulate = false;  // y += ... instead of y = ...
  float* y = nullptr;       // [rows, out]

  constexpr int64_t num_slices() const { return CeilDiv(in, kSliceInputs); }

  // Of outputs `output` and `output` + 8, inputs from k on; zeros past the end.
  BINARYMOS_DEVICE Float16Weights LoadWeights(int64_t output, int64_t k) const {
    return {{LoadWeight(output, k), LoadWeight(output + 8, k)}};
  }

  BINARYMOS_DEVICE void Store(int64_t row, int64_t output, float sum) const {
    if (row >= rows || output >= out) return;
    if (bias != nullptr) sum += ToFloat(bias[output]);
    float& value = y[row * out + output];
    value = accumulate ? value + sum : sum;
  }

 private:
  BINARYMOS_DEVICE Words4 LoadWeight(int64_t output, int64_t k) const {
    if (output >= out || k >= in) return {};
    const uint16_t* p = weight + output * in + k;
    if (in % 8 == 0) return LoadPack<Words4>(p);  // then rows are aligned
    Words4 words = {};
    BINARYMOS_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t half = k + i < in ? p[i] : 0;
      words.v[i / 2] |= half << (i % 2 * 16);
    }
    return words;
  }
};

// sums += the two steps of one chunk.
template <typename Block>
BINARYMOS_DEVICE void AddChunk(
    Block& block, typename Block::template PerThread<Float16Weights>& weights,
    typename Block::template PerThread<SplitInputs>& inputs,
    typename Block::template PerThread<FloatFragment>& sums) {
  typename Block::template PerThread<HalfFragmentA> a;
  typename Block::template PerThread<HalfFragmentB> b;
  BINARYMOS_UNROLL
  for (int step = 0; step < 2; ++step) {
    block.ForEach([&](int thread) {
      const auto& rows = weights[thread].rows;
      a[thread] = {{rows[0].v[2 * step], rows[1].v[2 * step],
                    rows[0].v[2 * step + 1], rows[1].v[2 * step + 1]}};
      const Words4& upper = inputs[thread].upper;
      b[thread] = {{upper.v[2 * step], upper.v[2 * step + 1]}};
    });
    block.HalfMma(sums, a, b);
    block.ForEach([&](int thread) {
      const Words4& lower = inputs[thread].lower;
      b[thread] = {{lower.v[2 * step], lower.v[2 * step + 1]}};
    });
    block.HalfMma(sums, a, b);
  }
}

struct Float16Linear {
  static constexpr int kThreads = kSumGroups * kWarp;

  Float16Args args;  // args.rows: at most kHalfMmaColumns

  Grid grid() const { return {CeilDiv(args.out, kHalfMmaRows), 1}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    const int64_t num_slices = args.num_slices();
    const int64_t first_output = block.x() * kHalfMmaRows;
    typename Block::template PerThread<FloatFragment> totals, sums;
    typename Block::template PerThread<Float16Weights> weights;
    typename Block::template PerThread<SplitInputs> inputs;
    block.ForEach([&](int thread) { totals[thread] = {}; });
    // Groups differ by a slice at most; who has none adds zero times zero.
    const int64_t most = CeilDiv(num_slices, kSumGroups);
    const auto slice_of = [&](int thread, int64_t i) {
      const int group = thread / kWarp;
      const int64_t slice = GroupBegin(group, num_slices) + i;
      return slice < GroupBegin(group + 1, num_slices) ? slice : int64_t{-1};
    };
    for (int64_t i = 0; i < most; ++i) {
      block.ForEach([&](int thread) { sums[thread] = {}; });
      BINARYMOS_UNROLL_BY_4
      for (int k = 0; k < kSliceInputs; k += Float16Args::kChunk) {
        block.ForEach([&](int thread) {
          const int lane = thread % kWarp;
          const int64_t slice = slice_of(thread, i);
          weights[thread] = {};
          inputs[thread] = {};
          if (slice < 0) return;
          weights[thread] = args.LoadWeights(
              first_output + lane / 4, slice * kSliceInputs + k + lane % 4 * 8);
          if (lane / 4 >= args.rows) return;
          const uint16_t* from = args.halves +
                                 (slice * args.rows + lane / 4) * kSplitSlice +
                                 k + lane % 4 * 8;
          inputs[thread] = {LoadPack<Words4>(from),
                            LoadPack<Words4>(from + kSliceInputs)};
        });
        AddChunk(block, weights, inputs, sums);
      }
      block.ForEach([&](int thread) {
        const int64_t slice = slice_of(thread, i);
        if (slice < 0) return;
        BINARYMOS_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int64_t row = thread % 4 * 2 + c % 2;
          if (row >= args.rows) continue;
          totals[thread].v[c] =
              Fma(sums[thread].v[c], args.scales[slice * args.rows + row],
                  totals[thread].v[c]);
        }
      });
    }
    block.ForEach([&](int thread) {
      *reinterpret_cast<FloatFragment*>(
          shared.totals[thread / kWarp][thread % kWarp]) = totals[thread];
    });
    block.Sync();
    block.ForEach([&](int thread) {
      // Element c of lane l: two of each four threads share an output's sector.
      const int lane = thread / 4;
      const int c = thread % 4;
      if (lane >= kWarp) return;
      float sum = 0.0f;
      BINARYMOS_UNROLL
      for (int group = 0; group < kSumGroups; ++group) {
        sum += shared.totals[group][lane][c];
      }
      args.Store(lane % 4 * 2 + c % 2, first_output + lane / 4 + c / 2 * 8,
                 sum);
    });
  }

 private:
  struct Shared {
    alignas(16) float totals[kSumGroups][kWarp][4];
  };
};

}  // namespace binarymos::cuda
