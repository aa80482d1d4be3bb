// A FakeModelRunner whose steps take virtual time.
#pragma once

#include <deque>
#include <functional>

#include "engine/api/model_runner.h"
#include "tests/scheduler/fake_model_runner.h"

namespace binarymos {

// What a step takes.
struct StepCost {
  Duration fixed{0};
  Duration per_token{0};
  Duration per_row{0};

  Duration Of(const BatchPlan& plan) const {
    return fixed + plan.num_tokens * per_token +
           static_cast<int>(plan.rows.size()) * per_row;
  }
};

// The device computes one step after the other, beginning when a step is
// submitted or when the one before it is done; waiting for a step is what moves
// the clock.
class TimedRunner : public ModelRunner {
 public:
  // `now` outlives this object.
  TimedRunner(const CacheConfig& config, int max_steps_in_flight, StepCost cost,
              MonotonicTime& now)
      : fake_(config, max_steps_in_flight), cost_(cost), now_(now) {}

  FakeModelRunner& fake() { return fake_; }

  // Called at the beginning of every Submit.
  std::function<void(const BatchPlan&)> on_submit;

  int max_steps_in_flight() const override {
    return fake_.max_steps_in_flight();
  }
  void AddSequence(SlotId slot, const SequenceInit& init) override {
    fake_.AddSequence(slot, init);
  }
  void RemoveSequence(SlotId slot) override { fake_.RemoveSequence(slot); }
  absl::Status Submit(const BatchPlan& plan) override;
  absl::Status Wait(StepResult& result) override;
  void SetProgressCallback(std::function<void()> callback) override {
    fake_.SetProgressCallback(std::move(callback));
  }

 private:
  FakeModelRunner fake_;
  const StepCost cost_;
  MonotonicTime& now_;
  MonotonicTime device_free_{};
  std::deque<std::pair<MonotonicTime, Duration>> steps_;  // end, length
};

}  // namespace binarymos
