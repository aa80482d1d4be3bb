// Computes the scheduler's plans with a LLaMA model.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/batch_plan.h"
#include "engine/api/model_runner.h"
#include "engine/backend/backend.h"
#include "engine/batch_input.h"
#include "engine/core/thread_pool.h"
#include "engine/kv_cache.h"
#include "engine/model/llama.h"
#include "engine/sampler.h"

namespace binarymos {

struct LlamaRunnerOptions {
  int max_num_seqs = 1;
  int gate_sample_interval = 64;  // steps between mean gates; 0: never
  int num_sampler_threads = 1;    // the calling thread included
  // The backend's, reserved for max_num_seqs and the model's max_logit_rows;
  // null: tokens are chosen on the host.
  DeviceSampler* sampler = nullptr;
  // 1, or 2 with a `sampler` of a backend that has as many.
  int max_steps_in_flight = 1;
};

// Flattens a plan, runs the model and chooses tokens: with a DeviceSampler on
// the device, so that a few bytes per row come back and the next step can name
// tokens that the host does not know. Prompt log-probabilities are the host's
// all the same: a step with such rows waits for their logits. Without a
// DeviceSampler the backend finds the tokens of a chunk whose rows all take the
// largest logit; else the logits come to the host.
//
// With one step in flight everything happens inside Submit. With two, Submit
// enqueues, and Wait waits for the oldest step, and tells the errors of
// computing it.
//
// Logits are computed, and travel where they must, in chunks of at most
// max_logit_rows rows, so a long prompt whose log-probabilities are wanted
// takes time but no memory. Confined to one thread at a time; backend, model
// and cache outlive it.
class LlamaRunner : public ModelRunner {
 public:
  LlamaRunner(Backend& backend, LlamaModel& model, KvCache& kv_cache,
              const LlamaRunnerOptions& options);
  ~LlamaRunner() override;  // waits for the steps in flight

  int max_steps_in_flight() const override {
    return options_.max_steps_in_flight;
  }
  void AddSequence(SlotId slot, const SequenceInit& init) override;
  void RemoveSequence(SlotId slot) override;
  absl::Status Submit(const BatchPlan& plan) override;
  absl::Status Wait(StepResult& result) override;
  void SetProgressCallback(std::function<void()> callback) override;

 private:
  // Logits of a slot's newest position, kept where prompt log-probabilities
  // are wanted: the token they predict comes with the next chunk.
  struct CarriedLogits {
    int32_t position = -1;
    std::vector<float> logits;  // [vocab]; empty if they were not finite
  };

  // A row of the plan that the device samples.
  struct DeviceRow {
    int plan_row = 0;
    bool with_logprobs = false;
  };
  // A step from Submit to Wait.
  struct Step {
    std::chrono::steady_clock::time_point start;
    StepResult result;
    std::vector<uint8_t> not_finite;  // [rows of the plan], seen by the host
    std::vector<DeviceRow> device_rows;
  };
  Step& StepAt(int64_t number) { return steps_[number % kMaxSteps]; }

  void CheckPlan(const BatchPlan& plan) const;
  // Readies the step's result and reports what carried logits say of first
  // positions.
  void StartResult(const BatchPlan& plan, const BatchView& batch);
  absl::Status Compute(const BatchPlan& plan, const BatchView& batch);
  // Tells the device which rows to sample.
  void SetDeviceRows(const BatchPlan& plan);
  // Computes logits [begin, end) and uses them up.
  absl::Status ProcessChunk(const BatchPlan& plan, const BatchView& batch,
                            int begin, int end);
  // Samples those of `logits`, of logit rows [begin, end), on the device.
  void SampleOnDevice(const ConstTensorView& logits, int begin, int end);
  // Whether the host looks at one of logits [begin, end).
  bool HostWants(const BatchPlan& plan, int begin, int end) const;
  // Whether the largest logit is all that is wanted of logits [begin, end).
  bool OnlyLargestWanted(const BatchPlan& plan, int begin, int end) const;
  // Lets the backend find the tokens of logits [begin, end).
  absl::Status TakeLargest(const BatchPlan& plan, const ConstTensorView& logits,
                           int begin, int end);
  // Reads back logits [begin, end) of the batch.
  absl::Status ProcessLogits(const BatchPlan& plan, const BatchView& batch,
                             const ConstTensorView& logits, int begin, int end);
  void ProcessLogitRow(const BatchPlan& plan, const BatchView& batch,
                       int logit_row, std::span<const float> logits,
                       SamplerScratch& scratch);
  void ReportCarriedPosition(const BatchRow& row, TokenId token,
                             StepResultRow& result);
  // Enqueues the copy of the gates' sums.
  absl::Status ReadGates();
  // Waits for the step and completes its result.
  absl::Status Finish(Step& step);
  void TakeSamples(Step& step);

  Backend& backend_;
  LlamaModel& model_;
  KvCache& kv_cache_;
  const LlamaRunnerOptions options_;

  BatchInput input_;
  SampledTokens sampled_;
  Sampler sampler_;
  std::vector<CarriedLogits> carried_;  // [max_num_seqs]
  std::function<void()> progress_;

  ThreadPool sampler_threads_;
  std::vector<SamplerScratch> scratch_;  // [num_sampler_threads]

  // Steps in flight, and the one that Submit is at.
  static constexpr int kMaxSteps = 2;
  std::array<Step, kMaxSteps> steps_;
  int64_t num_submitted_ = 0;
  int64_t num_waited_ = 0;
  std::chrono::steady_clock::time_point last_finish_;

  // Of Submit.
  Step* step_ = nullptr;
  std::vector<int> plan_rows_;       // [num_logit_rows] rows of the plan
  std::vector<uint8_t> not_finite_;  // [num_logit_rows]
  std::vector<DeviceSampleRow> device_rows_;
  size_t next_device_row_ = 0;      // to sample
  std::vector<float> host_logits_;  // [max_logit_rows, vocab]
  std::vector<int32_t> host_ids_;   // [max_logit_rows]
};

}  // namespace binarymos
