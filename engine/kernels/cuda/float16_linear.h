// y = x Wᵀ + bias with W in f16: lm_head, and the layers of Float16 models.
//
// x [rows, in] f32, W [out, in] f16  ->  y [rows, out] f32
//
// Threads. Four in a row share an output, each with four neighbouring lanes of
// the canonical sum: one load of 8 bytes brings their weights for one step of
// 16 inputs. A block has 64 outputs and up to 8 rows, whose x is in shared
// memory in chunks of 512 inputs, so weights are read once per 8 rows.
//
// Bytes: 2 in out per 8 rows. lm_head of the 7B model (4096 x 32000, 262 MB)
// with up to 8 rows on an H200: 61 us at 4.3 TB/s; predicted 75 us (8 warp
// instructions per 64 bytes leave memory as the limit up to 2 rows, fma above).
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

struct Float16Linear {
  static constexpr int kThreads = 256;
  static constexpr int kOutputs = kThreads / 4;  // of a block
  static constexpr int kRows = 8;                // of a block
  static constexpr int kChunk = 512;

  const float* x = nullptr;          // [rows, in]
  const uint16_t* weight = nullptr;  // [out, in] f16
  const uint16_t* bias = nullptr;    // [out] f16 or null
  int64_t rows = 0;
  int64_t in = 0;
  int64_t out = 0;
  bool accumulate = false;  // y += ... instead of y = ...
  float* y = nullptr;       // [rows, out], not overlapping x

  Grid grid() const { return {CeilDiv(out, kOutputs), CeilDiv(rows, kRows)}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    const int64_t first_row = block.y() * kRows;
    typename Block::template PerThread<Sums> sums;
    block.ForEach([&](int thread) { sums[thread] = {}; });
    for (int64_t begin = 0; begin < in; begin += kChunk) {
      block.Sync();  // everyone has read the chunk before
      block.ForEach([&](int thread) {
        for (int i = thread; i < kRows * kChunk; i += kThreads) {
          const int64_t row = first_row + i / kChunk;
          const int64_t k = begin + i % kChunk;
          shared.x[i / kChunk][i % kChunk] =
              row < rows && k < in ? x[row * in + k] : 0.0f;
        }
      });
      block.Sync();
      block.ForEach([&](int thread) {
        AddChunk(block.x() * kOutputs + thread / 4, thread % 4 * 4, begin,
                 shared, sums[thread]);
      });
    }
    BINARYMOS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      typename Block::template PerThread<Floats4> lanes;
      typename Block::template PerThread<float> sum;
      block.ForEach([&](int thread) { lanes[thread] = sums[thread].v[r]; });
      ReduceAddInQuads(block, lanes, sum);
      block.ForEach([&](int thread) {
        if (thread % 4 == 0) {
          Store(first_row + r, block.x() * kOutputs + thread / 4, sum[thread]);
        }
      });
    }
  }

 private:
  struct Sums {
    Floats4 v[kRows];
  };
  struct Shared {
    alignas(16) float x[kRows][kChunk];
  };

  // W[output, k .. k + 3], zeros past the end.
  BINARYMOS_DEVICE Halves4 LoadWeights(int64_t output, int64_t k) const {
    if (in % 4 == 0) {  // then rows are aligned
      return k < in ? LoadPack<Halves4>(weight + output * in + k) : Halves4{};
    }
    Halves4 halves = {};
    for (int i = 0; i < 4; ++i) {
      if (k + i < in) halves.v[i] = weight[output * in + k + i];
    }
    return halves;
  }

  BINARYMOS_DEVICE void AddChunk(int64_t output, int lane, int64_t begin,
                                 const Shared& shared, Sums& sums) const {
    if (output >= out) return;
    const int64_t steps = CeilDiv(in - begin, kSumLanes);
    const int size = steps < kChunk / kSumLanes
                         ? static_cast<int>(steps) * kSumLanes
                         : kChunk;
    for (int k = lane; k < size; k += kSumLanes) {
      const Halves4 halves = LoadWeights(output, begin + k);
      float w[4];
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) w[i] = ToFloat(halves.v[i]);
      BINARYMOS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Floats4 four = LoadPack<Floats4>(shared.x[r] + k);
        BINARYMOS_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums.v[r].v[i] = Fma(four.v[i], w[i], sums.v[r].v[i]);
        }
      }
    }
  }

  BINARYMOS_DEVICE void Store(int64_t row, int64_t output, float sum) const {
    if (row >= rows || output >= out) return;
    if (bias != nullptr) sum += ToFloat(bias[output]);
    float& value = y[row * out + output];
    value = accumulate ? value + sum : sum;
  }
};

}  // namespace binarymos::cuda
