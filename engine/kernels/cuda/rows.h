// Kernels that move or map rows of numbers, and the sum of gates.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

// out[t] = table[tokens[t]]. table [vocab, hidden] f16, tokens [num_tokens],
// out [num_tokens, hidden] f32. Token -1 - s is sampled[s]: that of slot s,
// which the host does not know (sample.h). A block per token; 6 hidden bytes.
// Predicted for one token on an H200: 2 us, a launch.
struct Embed {
  static constexpr int kThreads = 256;

  const uint16_t* table = nullptr;
  const int32_t* tokens = nullptr;
  const int32_t* sampled = nullptr;
  int64_t num_tokens = 0;
  int64_t hidden = 0;
  float* out = nullptr;

  Grid grid() const { return {num_tokens, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      int64_t token = tokens[block.x()];
      if (token < 0) token = sampled[-1 - token];
      const uint16_t* row = table + token * hidden;
      for (int64_t k = thread; k < hidden; k += kThreads) {
        out[block.x() * hidden + k] = ToFloat(row[k]);
      }
    });
  }
};

// out[r] = x[rows[r]]. x [.., hidden] f32, rows [num_rows], out [num_rows,
// hidden]. A block per row; 8 hidden bytes. Predicted: a launch.
struct GatherRows {
  static constexpr int kThreads = 256;

  const float* x = nullptr;
  const int32_t* rows = nullptr;
  int64_t num_rows = 0;
  int64_t hidden = 0;
  float* out = nullptr;

  Grid grid() const { return {num_rows, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const float* row = x + rows[block.x()] * hidden;
      for (int64_t k = thread; k < hidden; k += kThreads) {
        out[block.x() * hidden + k] = row[k];
      }
    });
  }
};

// out = (gate / (1 + exp(-gate))) * up, all [size] f32; out may be gate. A
// thread per element; 12 bytes each. 64 tokens of 11008 on an H200: 8.5 MB,
// 2 us of memory; predicted 4 us.
struct SwiGlu {
  static constexpr int kThreads = 256;

  const float* gate = nullptr;
  const float* up = nullptr;
  int64_t size = 0;
  float* out = nullptr;

  Grid grid() const { return {CeilDiv(size, kThreads), 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int64_t i = block.x() * kThreads + thread;
      if (i >= size) return;
      out[i] = Silu(gate[i]) * up[i];
    });
  }
};

// halves = x, rounded to f16: finite numbers beyond the largest half become
// that, others stay what they are. x [size] f32, halves [size] f16. Eight
// elements a thread; 6 bytes each. 1,024 rows of 4096 on an H200: 25 MB, 7 us.
struct RoundToHalves {
  static constexpr int kThreads = 256;
  static constexpr int kEach = 8;

  const float* x = nullptr;  // aligned to 16 bytes, as are halves
  int64_t size = 0;
  uint16_t* halves = nullptr;

  Grid grid() const { return {CeilDiv(size, kThreads * kEach), 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int64_t first = (block.x() * kThreads + thread) * kEach;
      if (first + kEach > size) {
        for (int64_t i = first; i < size; ++i) halves[i] = Round(x[i]);
        return;
      }
      const Floats4 low = LoadPack<Floats4>(x + first);
      const Floats4 high = LoadPack<Floats4>(x + first + 4);
      Pack<uint16_t, kEach> eight;
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) {
        eight.v[i] = Round(low.v[i]);
        eight.v[4 + i] = Round(high.v[i]);
      }
      *reinterpret_cast<Pack<uint16_t, kEach>*>(halves + first) = eight;
    });
  }

 private:
  static BINARYMOS_DEVICE uint16_t Round(float x) {
    const uint16_t half = ToHalf(x);
    const bool overflows = (half & 0x7fffu) == 0x7c00u &&
                           (FloatBits(x) & 0x7fffffffu) < 0x7f800000u;
    return overflows ? static_cast<uint16_t>(half - 1) : half;
  }
};

// y[r] = bias, or y[r] += bias, for every row. bias [out] f16, y [rows, out]
// f32. A thread per element; 6 to 10 bytes each.
struct AddBias {
  static constexpr int kThreads = 256;

  const uint16_t* bias = nullptr;
  int64_t rows = 0;
  int64_t out = 0;
  bool accumulate = false;
  float* y = nullptr;

  Grid grid() const { return {CeilDiv(rows * out, kThreads), 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int64_t i = block.x() * kThreads + thread;
      if (i >= rows * out) return;
      const float value = ToFloat(bias[i % out]);
      y[i] = accumulate ? y[i] + value : value;
    });
  }
};

// sums[e] += gates[t][e] over t ascending. gates [tokens, E] f32, sums [E]. A
// thread per expert; sampled steps only. Predicted for one token: a launch; for
// 2,048: 20 us.
struct SumGates {
  static constexpr int kThreads = 64;  // kMaxExperts

  const float* gates = nullptr;
  int64_t tokens = 0;
  int experts = 0;
  float* sums = nullptr;

  Grid grid() const { return {1, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      if (thread >= experts) return;
      float sum = sums[thread];
      for (int64_t t = 0; t < tokens; ++t) sum += gates[t * experts + thread];
      sums[thread] = sum;
    });
  }
};

}  // namespace binarymos::cuda
