// Chooses a device.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace binarymos {

struct BackendOptions {
  // "auto" (CUDA if there is a usable device, else CPU), "cpu", "cuda",
  // "cuda:<n>".
  std::string device = "auto";
  // CPU threads, the serving loop's own included; 0: as many as the process may
  // use (affinity and cgroup quota).
  int num_threads = 0;
  // Each CPU thread but the serving loop's keeps to one CPU.
  bool cpu_pin = false;
  // CPU instruction set: "auto" (the best that is there), "amx" (with AVX-512),
  // "avx512", "avx2", "neon", "portable", or "reference" (the double-precision
  // oracle, slow). Results are the same for all but the last.
  std::string cpu_kernels = "auto";
  // Bits of a scaled activation inside a binary linear: 8, 12, 14 or 16.
  // 0: the device's default (CPU 14, CUDA 16).
  int activation_bits = 0;
  // The part of a CUDA device's memory that this process may fill, the other
  // processes there included: more than 0, at most 1.
  double gpu_memory_utilization = 0.9;
  // CUDA: record steps of a token per sequence and replay them. Changes no bit.
  bool cuda_graphs = true;
  // CUDA, where the device can: a binary linear of one token in one launch of
  // clusters; kernels that begin before the one ahead of them has ended; binary
  // linears of several tokens by the instruction of a warpgroup. None changes a
  // bit.
  bool cuda_clusters = true;
  bool cuda_overlap = true;
  bool cuda_wgmma = false;
  // CUDA: time the steps of Backend::device_seconds. For benchmarks.
  bool cuda_time_steps = false;
  // CUDA only: binary linears of large steps (kFastRows in cuda_backend.h)
  // multiply halves. Faster, not canonical.
  bool fast_linear = false;
};

// INVALID_ARGUMENT for a value that is not in the lists above, or that has no
// meaning on the device that is asked for by name; UNAVAILABLE if
// the device asked for is not there or not built in.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(
    const BackendOptions& options);

}  // namespace binarymos
