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

absl::StatusOr<std::vector<double>> TakeDeviceSamples(
    const Backend& backend, int warm_ups, int samples,
    absl::FunctionRef<absl::Status()> step) {
  std::vector<double> seconds;
  const auto taken = TakeSamples(warm_ups, samples, [&] {
    const absl::Status status = step();
    seconds.push_back(backend.device_seconds());
    return status;
  });
  if (!taken.ok()) return taken.status();
  seconds.erase(seconds.begin(), seconds.begin() + warm_ups);
  return seconds;
}

absl::StatusOr<std::vector<AlternatingSamples>> TakeAlternatingSamples(
    const std::vector<std::function<absl::Status()>>& steps, int rounds,
    double seconds, int most) {
  std::vector<AlternatingSamples> samples(steps.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < steps.size(); ++i) {
      const auto warm_up = TakeSamples(0, 1, steps[i]);
      if (!warm_up.ok()) return warm_up.status();
      const double fits = seconds / rounds / warm_up->front();
      const int count =
          fits < most ? std::max(1, static_cast<int>(fits)) : most;
      // A tenth of them again, as warm-up: clocks rise under load.
      const auto taken = TakeSamples(count / 10, count, steps[i]);
      if (!taken.ok()) return taken.status();
      AlternatingSamples& own = samples[i];
      own.all.insert(own.all.end(), taken->begin(), taken->end());
      own.rounds.push_back(Quantile(*taken, 0.5));
    }
  }
  return samples;
}

Summary Summarize(const std::vector<double>& samples) {
  return {Quantile(samples, 0.5), Quantile(samples, 0.95),
          Quantile(samples, 0.0)};
}

}  // namespace binarymos
