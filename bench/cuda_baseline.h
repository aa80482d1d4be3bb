// What a CUDA device does without our kernels, measured in the same process:
// what our figures are held against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

namespace binarymos {

// Samples are seconds of one call by the device's clock: `calls` of them are
// one CUDA graph, each sample is one replay, divided by `calls`.
// Confined to one thread.
class CudaBaseline {
 public:
  struct Sampling {
    int calls = 64;
    int warm_ups = 20;
    int samples = 100;
  };

  // UNAVAILABLE if there is no such device, or no CUDA in this build.
  static absl::StatusOr<std::unique_ptr<CudaBaseline>> Create(int ordinal);
  virtual ~CudaBaseline() = default;

  // A copy of `bytes` from the device to itself.
  virtual absl::StatusOr<std::vector<double>> Copy(
      size_t bytes, const Sampling& sampling) = 0;

  // cuBLAS: y = x Wᵀ, x [rows, in], W [out, in], all f16, sums in f32. Weights
  // take turns, enough of them to come from memory. UNAVAILABLE if cuBLAS is
  // not installed: it is looked for at run time.
  virtual absl::StatusOr<std::vector<double>> Float16Linear(
      int64_t in, int64_t out, int64_t rows, const Sampling& sampling) = 0;
};

}  // namespace binarymos
