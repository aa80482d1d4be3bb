// The time of one linear layer in the shapes of LLaMA 7B, beside what memory
// gives in the same process.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/backend_factory.h"

namespace binarymos {

struct LinearBenchOptions {
  BackendOptions backend;
  std::vector<std::string> kinds = {"binarymos"};  // onebit, float16
  std::vector<int> tokens = {1, 8, 32, 128};       // rows of a batch
  int repeats = 5;
  bool json = false;
};

// Prints a table (or JSON) to stdout. Every call takes another copy of the
// layer, so that weights come from memory. On a CPU: median and spread of
// `repeats` runs in random order, GB/s of packed weights and multiply-adds per
// second. On CUDA: bench/device_linear_bench.h. INVALID_ARGUMENT for an unknown
// kind; errors of CreateBackend and Pack.
absl::Status RunLinearBench(const LinearBenchOptions& options);

}  // namespace binarymos
