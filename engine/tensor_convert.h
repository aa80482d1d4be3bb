// From the tensors of training checkpoints to those of a model directory.
#pragma once

#include <cstdint>
#include <span>

#include "engine/core/tensor.h"

namespace binarymos {

// Whether convert reads tensors of this type: F16, BF16 and F32.
bool IsFloat(DType dtype);

// Index of the first NaN or Inf of a float tensor; -1 if there is none.
int64_t FindNotFinite(const ConstTensorView& tensor);

// Packs the signs of `latent`, floats, host, a multiple of 8 of them: bit i of
// out[j] is 1 if element 8j + i is positive or a zero, which has no sign.
// Returns the number of zeros. `out` is [elements / 8].
int64_t PackSigns(const ConstTensorView& latent, std::span<uint8_t> out);

struct HalvesResult {
  int64_t overflow = -1;    // index of the first that does not fit
  int64_t num_flushed = 0;  // that were not zero and became it
};
// Rounds `values`, finite floats, host, to F16. `out` is [elements].
HalvesResult ToHalves(const ConstTensorView& values, std::span<uint16_t> out);

// Element `i` of a float tensor.
float ElementOf(const ConstTensorView& tensor, int64_t i);

// Elements [begin, begin + count) of `tensor`, as one dimension.
ConstTensorView Slice(const ConstTensorView& tensor, int64_t begin,
                      int64_t count);

}  // namespace binarymos
