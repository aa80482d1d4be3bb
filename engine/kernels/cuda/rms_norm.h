// out = (x * (1 / sqrt(mean(x²) + eps))) * weight, per row.
//
// x, out [rows, hidden] f32 (may be the same), weight [hidden] f16
//
// Threads. A block per row; four threads sum the squares of a slice, in the
// canonical order; all of them scale.
//
// Bytes per row: 8 hidden read (the second time from L1 or L2), 4 hidden
// written, 2 hidden of weights. Predicted for one row of 4096 on an H200: 2 us;
// it is launch and two waits for memory.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

struct RmsNorm {
  static constexpr int kThreads = 256;

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
    const auto load = [&](int, int64_t k) {
      const Floats4 four = LoadFour(row, k);
      return GroupedSums<1>::Factors{four, four};
    };
    shared.sums.template Add<kThreads>(block, hidden, 1, load, &shared.sum);
    block.Sync();
    block.ForEach([&](int thread) {
      const float mean = shared.sum / static_cast<float>(hidden);
      const float scale = 1.0f / Sqrt(mean + eps);
      for (int64_t k = thread; k < hidden; k += kThreads) {
        out[block.x() * hidden + k] = row[k] * scale * ToFloat(weight[k]);
      }
    });
  }

 private:
  struct Shared {
    GroupedSums<1> sums;
    float sum;
  };

  // row[k .. k + 3], zeros past the end.
  BINARYMOS_DEVICE Floats4 LoadFour(const float* row, int64_t k) const {
    if (hidden % 4 == 0) return LoadPack<Floats4>(row + k);  // aligned
    Floats4 four = {};
    for (int i = 0; i < 4; ++i) {
      if (k + i < hidden) four.v[i] = row[k + i];
    }
    return four;
  }
};

}  // namespace binarymos::cuda
