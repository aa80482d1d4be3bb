#include "tests/simulation/timed_runner.h"

#include <algorithm>
#include <utility>

namespace binarymos {

absl::Status TimedRunner::Submit(const BatchPlan& plan) {
  if (on_submit) on_submit(plan);
  absl::Status status = fake_.Submit(plan);
  if (!status.ok()) return status;
  const Duration length = cost_.Of(plan);
  device_free_ = std::max(device_free_, now_) + length;
  steps_.emplace_back(device_free_, length);
  return absl::OkStatus();
}

absl::Status TimedRunner::Wait(StepResult& result) {
  const auto [end, length] = steps_.front();
  steps_.pop_front();
  now_ = std::max(now_, end);
  absl::Status status = fake_.Wait(result);
  result.stats.compute_time = length;
  return status;
}

}  // namespace binarymos
