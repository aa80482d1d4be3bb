#include "bench/samples.h"

#include <chrono>

#include "bench/workload.h"

namespace binarymos {

absl::StatusOr<std::vector<double>> TakeSamples(
    int warm_ups, int samples, absl::FunctionRef<absl::Status()> step) {
  std::vector<double> seconds;
  for (int i = -warm_ups; i < samples; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (absl::Status status = step(); !status.ok()) return status;
    const std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - start;
    if (i >= 0) seconds.push_back(took.count());
  }
  return seconds;
}

Summary Summarize(const std::vector<double>& samples) {
  return {Quantile(samples, 0.5), Quantile(samples, 0.95),
          Quantile(samples, 0.0)};
}

}  // namespace binarymos
