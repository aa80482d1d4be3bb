// Computes the scheduler's plans with a LLaMA model.
#pragma once

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
};

// Flattens a plan, runs the model and samples, all inside Submit: one step in
// flight. Where every row of a chunk takes the largest logit, the backend finds
// it and only token ids come back. Else logits travel to the host in chunks of
// at most max_logit_rows rows, so a long prompt whose log-probabilities are
// wanted takes time but no memory. Confined to one thread at a time; backend,
// model and cache outlive it.
class LlamaRunner : public ModelRunner {
 public:
  LlamaRunner(Backend& backend, LlamaModel& model, KvCache& kv_cache,
              const LlamaRunnerOptions& options);

  int max_steps_in_flight() const override { return 1; }
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

  void CheckPlan(const BatchPlan& plan) const;
  // Readies result_ and reports what carried logits say of first positions.
  void StartResult(const BatchPlan& plan, const BatchView& batch);
  absl::Status Compute(const BatchPlan& plan, const BatchView& batch);
  // Whether the largest logit is all that is wanted of logits [begin, end).
  bool OnlyLargestWanted(const BatchPlan& plan, int begin, int end) const;
  // Lets the backend find the tokens of logits [begin, end).
  absl::Status TakeLargest(const BatchPlan& plan, int begin, int end);
  // Reads back logits [begin, end) of the batch and uses them up.
  absl::Status ProcessLogits(const BatchPlan& plan, const BatchView& batch,
                             int begin, int end);
  void ProcessLogitRow(const BatchPlan& plan, const BatchView& batch,
                       int logit_row, std::span<const float> logits,
                       SamplerScratch& scratch);
  void ReportCarriedPosition(const BatchRow& row, TokenId token,
                             StepResultRow& result);
  // Ends rows with a logit that was not finite, and remembers tokens.
  void FinishResult(const BatchPlan& plan);
  absl::Status ReadMeanGate(int num_tokens);

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

  // The step in flight.
  bool in_flight_ = false;
  StepResult result_;
  std::vector<int> plan_rows_;       // [num_logit_rows] rows of the plan
  std::vector<uint8_t> not_finite_;  // [num_logit_rows]
  std::vector<float> host_logits_;   // [max_logit_rows, vocab]
  std::vector<int32_t> host_ids_;    // [max_logit_rows]
};

}  // namespace binarymos
