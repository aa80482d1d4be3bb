// The roof over everything that reads memory.
#pragma once

#include "absl/status/statusor.h"
#include "engine/backend/backend_factory.h"

namespace binarymos {

// Bytes per second, median of some runs: what all threads together read from
// memory (CPU), or what the device reads and writes while it copies (CUDA).
// UNAVAILABLE if there is no such device.
absl::StatusOr<double> MeasureBandwidth(const BackendOptions& options,
                                        bool on_cuda);

}  // namespace binarymos
