// One linear layer on a CUDA device, beside cuBLAS and the device's own copy.
#pragma once

#include "absl/status/status.h"
#include "bench/linear_bench.h"
#include "engine/backend/backend.h"

namespace binarymos {

// Prints a table (or JSON) to stdout: the six shapes of LLaMA 7B and 13B, each
// kind of layer, and cuBLAS in float16. A sample is one replay of a CUDA graph
// of 64 or more calls by the device's clock, divided by the calls; each call
// has another copy of the layer. Beside it the time by the host's clock of a
// call that the host launches, and what the method's authors published for
// their GPU. Errors of the device and of Pack.
absl::Status RunDeviceLinearBench(const LinearBenchOptions& options,
                                  Backend& backend);

}  // namespace binarymos
