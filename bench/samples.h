// What was measured, and how it is told.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace binarymos {

// Runs `step` warm_ups times, then `samples` times; the seconds of each of the
// latter. The first failure ends it.
absl::StatusOr<std::vector<double>> TakeSamples(
    int warm_ups, int samples, absl::FunctionRef<absl::Status()> step);

// The same, as often as fits into `seconds`: 5 to `most` samples after 2
// warm-ups, more where steps are short.
absl::StatusOr<std::vector<double>> TakeSamplesFor(
    double seconds, int most, absl::FunctionRef<absl::Status()> step);

// Of some samples, in the unit of theirs.
struct Summary {
  double median = 0;
  double p95 = 0;
  double least = 0;
};
Summary Summarize(const std::vector<double>& samples);

}  // namespace binarymos
