// What was measured, and how it is told.
#pragma once

#include <functional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace binarymos {

// Runs `step` warm_ups times, then `samples` times; the seconds of each of the
// latter. The first failure ends it.
absl::StatusOr<std::vector<double>> TakeSamples(
    int warm_ups, int samples, absl::FunctionRef<absl::Status()> step);

// The same, of a step of `backend`, by the device's clock. REQUIRES: a backend
// that times its steps.
absl::StatusOr<std::vector<double>> TakeDeviceSamples(
    const Backend& backend, int warm_ups, int samples,
    absl::FunctionRef<absl::Status()> step);

// Samples of one of several things that were measured in turn.
struct AlternatingSamples {
  std::vector<double> all;     // seconds of every step
  std::vector<double> rounds;  // the median of each round's
};

// Runs each of `steps` in turn, `rounds` times, each time as often as fits into
// `seconds` / `rounds` after a warm-up, at least once and at most `most` times:
// what disturbs the machine for a while disturbs all of them. The first failure
// ends it.
absl::StatusOr<std::vector<AlternatingSamples>> TakeAlternatingSamples(
    const std::vector<std::function<absl::Status()>>& steps, int rounds,
    double seconds, int most);

// Of some samples, in the unit of theirs.
struct Summary {
  double median = 0;
  double p95 = 0;
  double least = 0;
};
Summary Summarize(const std::vector<double>& samples);

}  // namespace binarymos
