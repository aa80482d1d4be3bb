// Computes steps on a thread of its own.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/api/batch_plan.h"
#include "engine/api/model_runner.h"
#include "engine/core/mutex.h"

namespace binarymos {

// Two steps in flight around a runner that computes inside Submit: while its
// thread computes one, the caller plans the next and publishes the last. Steps,
// and the sequences that come and go between them, reach the runner in the
// order of the calls, so it knows the token of a step before it computes the
// one that refers to it, and computes the same as it would without this.
//
// Confined to the serving-loop thread, as any runner. An error of the runner is
// told by the Wait for its step; those behind it are not computed and have the
// same.
class AsyncRunner : public ModelRunner {
 public:
  // `runner` has no step in flight.
  explicit AsyncRunner(std::unique_ptr<ModelRunner> runner);
  ~AsyncRunner() override;  // what was submitted is computed first

  int max_steps_in_flight() const override { return kMaxStepsInFlight; }
  void AddSequence(SlotId slot, const SequenceInit& init) override;
  void RemoveSequence(SlotId slot) override;
  absl::Status Submit(const BatchPlan& plan) override;
  absl::Status Wait(StepResult& result) override;
  // When it returns, the callback before is not called any more.
  void SetProgressCallback(std::function<void()> callback) override;

 private:
  static constexpr int kMaxStepsInFlight = 2;

  // A sequence that comes, or goes.
  struct SlotChange {
    SlotId slot = 0;
    bool add = false;
    SamplingParams sampling;
    uint32_t sample_index = 0;
    std::vector<TokenId> prompt;
    std::vector<TokenId> output;
  };
  // A plan whose spans point into memory of its own.
  class PlanCopy {
   public:
    void Assign(const BatchPlan& plan);
    const BatchPlan& plan() const { return plan_; }

   private:
    BatchPlan plan_;
    std::vector<TokenId> tokens_;
    std::vector<BlockId> blocks_;
    std::vector<uint32_t> masks_;
  };
  struct Step {
    std::vector<SlotChange> changes;  // before it
    PlanCopy plan;
    absl::Status status;
    StepResult result;
  };

  void Main();
  void Compute(Step& step);
  Step& StepAt(int64_t number) { return steps_[number % kMaxStepsInFlight]; }

  // Of the thread, once it runs.
  const std::unique_ptr<ModelRunner> runner_;
  absl::Status failure_;

  // Step number n, counted from 0, is the thread's from Submit until it is
  // computed, else the caller's.
  std::array<Step, kMaxStepsInFlight> steps_;
  std::vector<SlotChange> changes_;  // since the last Submit
  int64_t num_waited_ = 0;

  Mutex mutex_;
  CondVar submitted_;
  CondVar computed_;
  int64_t num_submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_computed_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  Mutex progress_mutex_;
  std::function<void()> progress_ ABSL_GUARDED_BY(progress_mutex_);

  std::thread thread_;
};

}  // namespace binarymos
