// The binary linear with token-adaptive scales (BinaryMoS) on CPU.
//
//   g = softmax(x · gateᵀ)   s_in = g · in_scale   s_out = g · out_scale
//   y = ((x ⊙ s_in) · sign(W)ᵀ) ⊙ s_out + bias
//
// Canonical arithmetic (DESIGN section 6), per token:
//   x · gateᵀ is a GroupedDot() per expert (canonical_math.h);
//   s_in[k]  = fma over the experts, ascending, from 0; s_out the same;
//   u        = x ⊙ s_in, zero-padded to slices of 256;
//   q        = u * (qmax / m) rounded to nearest even, m = max |u| of the
//              slice, qmax = 2^(bits - 1) - 1; a slice with m < 2^-100 is zero;
//   acc      = fma(S, m / qmax, acc), S the exact sum of ±q of a slice, slices
//              ascending inside 8 contiguous groups, each from 0, then the
//              groups ascending;
//   y        = acc * s_out, or fma(acc, s_out, bias) with a bias.
// A slice with a value that is not finite makes the token's outputs NaN.
//
// How: four weights index a table of the 16 sums that their signs can give; one
// byte shuffle looks up 32 output rows at once (binary_mos_linear_kernels.h).
// AMX multiplies bytes; a token alone and 16 activation bits are left to
// AVX-512. About one bit per weight is read per 32 tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/buffer.h"
#include "engine/core/tensor.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/binary_mos_linear_layer.h"

namespace binarymos::cpu {

// Instruction set. All give the same bits.
enum class BinaryMosPath { kPortable, kAvx2, kAvx512, kAmx, kNeon };

// "portable", "avx2", "avx512", "amx", "neon"
const char* Name(BinaryMosPath path);
// Whether `path` was built in and this CPU can run it.
bool Supports(BinaryMosPath path);

// One layer as it stands in the model directory, host memory of any alignment.
// Row-major bits: bit i of byte j is weight 8j + i, 1 means +1.
struct BinaryMosTensors {
  ConstTensorView sign;       // [out, in / 8] u8
  ConstTensorView gate;       // [E, in] f16; absent: no router, E = 1, g = 1
  ConstTensorView in_scale;   // [E, in] f16
  ConstTensorView out_scale;  // [E, out] f16
  ConstTensorView bias;       // [out] f16 or absent
};

// One layer in the order in which the kernels read it: about one bit per
// weight, and the vectors in f16. Immutable after Pack; any thread may read.
class PackedBinaryMos {
 public:
  // Copies; `tensors` is not needed afterwards. INVALID_ARGUMENT for more than
  // kMaxBinaryMosExperts; RESOURCE_EXHAUSTED if there is no memory. REQUIRES:
  // the shapes above, in_features >= 8 and divisible by 8. The threads of
  // `pool`, if given, share the work, a contiguous part each, which also
  // spreads the memory over their nodes.
  static absl::StatusOr<PackedBinaryMos> Pack(const BinaryMosTensors& tensors,
                                              ThreadPool* pool = nullptr);

  int64_t in_features() const { return layer_.in_features; }
  int64_t out_features() const { return layer_.out_features; }
  int num_experts() const { return layer_.num_experts; }
  bool has_gate() const { return layer_.gate != nullptr; }
  size_t bytes() const { return buffer_.bytes(); }

  const BinaryMosLayer& layer() const { return layer_; }

 private:
  PackedBinaryMos() = default;

  Buffer buffer_;  // owns what layer_ points to
  BinaryMosLayer layer_;
};

// Scratch memory of RunBinaryMos, reused by every layer. One call at a time.
class BinaryMosWorkspace {
 public:
  // Makes room for layers and batches of up to this size; keeps what it has if
  // that is enough. RESOURCE_EXHAUSTED if there is no memory.
  absl::Status Reserve(int64_t max_rows, int64_t max_in_features);

  size_t bytes() const { return buffer_.bytes(); }
  void* data() const { return buffer_.data(); }  // aligned to 64 bytes

 private:
  Buffer buffer_;
};

struct BinaryMosCall {
  const float* x = nullptr;  // [rows, in]
  float* y = nullptr;        // [rows, out], not overlapping x
  int64_t rows = 0;
  bool accumulate = false;     // y += ... instead of y = ...
  float* gate_sums = nullptr;  // [E] or null: g, summed over rows, is added
  int activation_bits = 14;    // 8, 12, 14 or 16
  BinaryMosPath path = BinaryMosPath::kPortable;  // one that is supported
};

// A row of y depends, bit for bit, only on its row of x, the layer and
// activation_bits. Does not allocate. REQUIRES: `workspace` reserved for at
// least call.rows rows and linear.in_features().
void RunBinaryMos(const PackedBinaryMos& linear, const BinaryMosCall& call,
                  BinaryMosWorkspace& workspace, ThreadPool& pool);

}  // namespace binarymos::cpu
