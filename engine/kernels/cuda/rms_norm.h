// out = (x * (1 / sqrt(mean(x²) + eps))) * weight, per row.
//
// x, out [rows, hidden] f32 (may be the same), weight [hidden] f16
//
// Threads. A block per row; 16 threads sum the squares, a canonical lane each,
// from shared memory in chunks; all of them scale.
//
// Bytes per row: 8 hidden read (the second time from L1 or L2), 4 hidden
// written, 2 hidden of weights. Predicted for one row of 4096 on an H200: 2.5
// us; it is launch, two waits for memory and 256 dependent fma.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

struct RmsNorm {
  static constexpr int kThreads = 256;
  static constexpr int kChunk = 4096;

  const float* x = nullptr;
  const uint16_t* weight = nullptr;
  float eps = 0.0f;
  int64_t rows = 0;
  int64_t hidden = 0;
  float* out = nullptr;

  Grid grid() const { return {rows, 1}; }
  size_t shared_bytes() const { return sizeof(Shared); }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    auto& shared = *static_cast<Shared*>(block.shared());
    const float* row = x + block.x() * hidden;
    typename Block::template PerThread<float> sum;
    block.ForEach([&](int thread) { sum[thread] = 0.0f; });
    for (int64_t begin = 0; begin < hidden; begin += kChunk) {
      const int64_t left = CeilDiv(hidden - begin, kSumLanes) * kSumLanes;
      const int size = static_cast<int>(left < kChunk ? left : kChunk);
      block.Sync();
      block.ForEach([&](int thread) {
        for (int i = thread; i < size; i += kThreads) {
          shared.x[i] = begin + i < hidden ? row[begin + i] : 0.0f;
        }
      });
      block.Sync();
      block.ForEach([&](int thread) {
        if (thread >= kSumLanes) return;
        BINARYMOS_UNROLL_BY_16
        for (int k = thread; k < size; k += kSumLanes) {
          sum[thread] = Fma(shared.x[k], shared.x[k], sum[thread]);
        }
      });
    }
    block.ForEach([&](int thread) {
      if (thread < kSumLanes) shared.lanes[thread] = sum[thread];
    });
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread != 0) return;
      const float mean = ReduceAdd(shared.lanes) / static_cast<float>(hidden);
      shared.scale = 1.0f / Sqrt(mean + eps);
    });
    block.Sync();
    block.ForEach([&](int thread) {
      for (int64_t k = thread; k < hidden; k += kThreads) {
        out[block.x() * hidden + k] =
            row[k] * shared.scale * ToFloat(weight[k]);
      }
    });
  }

 private:
  struct Shared {
    float x[kChunk];
    float lanes[kSumLanes];
    float scale;
  };
};

}  // namespace binarymos::cuda
