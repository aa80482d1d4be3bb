#include "bench/samples.h"

#include <algorithm>
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

absl::StatusOr<std::vector<double>> TakeSamplesFor(
    double seconds, int most, absl::FunctionRef<absl::Status()> step) {
  const auto warm_up = TakeSamples(1, 1, step);
  if (!warm_up.ok()) return warm_up.status();
  const double fits = seconds / warm_up->front();
  const int samples = fits < most ? std::max(5, static_cast<int>(fits)) : most;
  // A tenth of them again, as warm-up: clocks rise under load.
  return TakeSamples(samples / 10, samples, step);
}

Summary Summarize(const std::vector<double>& samples) {
  return {Quantile(samples, 0.5), Quantile(samples, 0.95),
          Quantile(samples, 0.0)};
}

}  // namespace binarymos
