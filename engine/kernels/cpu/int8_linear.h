// y = x Wᵀ with W rounded to 8 bits: an lm_head of half the size, not exact.
//
//   W[o][k] = round(w[o][k] / w_scale[o]), w_scale[o] = max |w[o]| / 127
//
// x becomes integers as in a binary linear (binary_mos_linear.h), per slice of
// 256 inputs, zero-padded:
//   q        = x * (qmax / m) rounded to nearest even, m = max |x| of the
//              slice, qmax = 2^(bits - 1) - 1; a slice with m < 2^-100 is zero;
//   acc      = fma(S, m / qmax, acc), S = Σ q W of a slice, exact and then
//              rounded to f32, slices ascending inside 8 contiguous groups,
//              each from 0, then the groups ascending;
//   y        = acc * w_scale.
// A slice with a value that is not finite makes the row's outputs NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/buffer.h"
#include "engine/core/tensor.h"
#include "engine/kernels/cpu/parallel.h"

namespace binarymos::cpu {

// One layer in the order in which the kernel reads it: a byte per weight,
// padded to 16 outputs and 256 inputs, and a float per output. Immutable after
// Pack; any thread may read.
class PackedInt8 {
 public:
  // Rounds `weight`, [out, in] f16 in host memory, with the threads of `pool`.
  // INVALID_ARGUMENT if a weight is not finite; RESOURCE_EXHAUSTED if there is
  // no memory.
  static absl::StatusOr<PackedInt8> Pack(const ConstTensorView& weight,
                                         ThreadPool& pool);

  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }
  int64_t num_slices() const { return num_slices_; }
  int64_t num_blocks() const { return num_blocks_; }
  size_t bytes() const { return buffer_.bytes(); }

  const int8_t* block(int64_t i) const;  // [num_slices, 16, 256]
  const float* scales() const;           // [num_blocks * 16]

 private:
  PackedInt8() = default;

  Buffer buffer_;
  int64_t in_ = 0, out_ = 0, num_slices_ = 0, num_blocks_ = 0;
};

// Integers of some rows of x. Reused by calls, one at a time.
class Int8Workspace {
 public:
  static constexpr int64_t kRows = 32;  // that are held at a time

  // Makes room for a layer of so many slices.
  void Reserve(int64_t num_slices);

  int16_t* q() { return q_.data(); }          // [kRows, num_slices * 256]
  float* scales() { return scales_.data(); }  // [kRows, num_slices]

 private:
  std::vector<int16_t> q_;
  std::vector<float> scales_;
};

struct Int8LinearCall {
  const float* x = nullptr;  // [rows, in]
  int64_t rows = 0;
  int activation_bits = 14;  // 8, 12, 14 or 16
  float* y = nullptr;        // [rows, out], not overlapping x
};

// A row of y depends, bit for bit, only on its row of x, the layer and
// activation_bits. REQUIRES: `workspace` reserved for the layer.
void Int8Linear(const CpuContext& context, const PackedInt8& layer,
                const Int8LinearCall& call, Int8Workspace& workspace);

}  // namespace binarymos::cpu
