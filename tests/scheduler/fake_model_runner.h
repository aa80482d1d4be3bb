// A ModelRunner without a model, which checks everything it is told.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/api/model_runner.h"
#include "scheduler/request.h"

namespace binarymos {

inline constexpr int kFakeVocabSize = 97;

// What a transformer would keep for a position: it depends on every token up to
// there. `previous` is the state of the position before, 0 at the beginning.
uint64_t FakeState(uint64_t previous, TokenId token);

// The token that follows a prefix with this state: a pure function of it.
TokenId FakeNextToken(uint64_t state, const SamplingParams& sampling,
                      uint32_t sample, int num_output);

// What a request gives when nothing disturbs it.
struct ReferenceOutput {
  std::vector<TokenId> tokens;  // the last one included
  FinishReason reason = FinishReason::kLength;
};
ReferenceOutput FakeReference(const Request& request, int sample);

// The log-probability it reports for a token after a prefix.
float FakeLogprob(uint64_t state, TokenId token);

// Sequences with this seed have logits that are not finite when they sample
// their output token number kPoisonedOutput.
inline constexpr uint64_t kPoisonedSeed = 666;
inline constexpr int kPoisonedOutput = 3;

// Computes in Submit (depth 1) or, in order, in Wait (depth 2). The cache is a
// map from (block, offset) to the state of what was written there. Reports as
// test failures: slots that are not what they should be, tokens or positions
// that do not continue the sequence, block tables through which the sequence's
// own past is not found, blocks and slots taken from a step in flight, plans
// past the budget.
class FakeModelRunner : public ModelRunner {
 public:
  FakeModelRunner(const CacheConfig& config, int max_steps_in_flight);

  // From then on calls fail with `status`.
  void FailSubmitAt(StepId step, absl::Status status);
  void FailWaitAt(StepId step, absl::Status status);

  int64_t num_tokens_computed() const { return num_tokens_computed_; }
  int num_sequences() const;
  int num_steps_in_flight() const { return static_cast<int>(steps_.size()); }

  int max_steps_in_flight() const override { return max_steps_in_flight_; }
  void AddSequence(SlotId slot, const SequenceInit& init) override;
  void RemoveSequence(SlotId slot) override;
  absl::Status Submit(const BatchPlan& plan) override;
  absl::Status Wait(StepResult& result) override;
  void SetProgressCallback(std::function<void()> callback) override;

 private:
  struct Slot {
    SamplingParams sampling;
    uint32_t sample = 0;
    int num_prompt = 0;
    std::vector<TokenId> tokens;   // known to the runner: sampled ones too
    std::vector<uint64_t> states;  // of `tokens`, as far as needed
    std::optional<int> num_computed;
    StepId sampled_in = kNoStep;
  };
  struct Row {
    BatchRow row;  // its spans refer to the copies below
    std::vector<TokenId> tokens;
    std::vector<BlockId> block_table;
  };
  struct Step {
    StepId step = kNoStep;
    std::vector<Row> rows;
    StepResult result;
  };

  void CheckPlan(const BatchPlan& plan);
  void Compute(Step& step);
  void WriteRow(const Row& row);
  void ReadRow(const Row& row, StepId step, StepResultRow& result);
  uint64_t& Cached(const Row& row, int position);

  const CacheConfig config_;
  const int max_steps_in_flight_;
  std::map<SlotId, Slot> slots_;
  std::vector<uint64_t> cache_;  // [num_blocks * block_size]
  std::deque<Step> steps_;
  StepId last_step_ = kNoStep;
  int64_t num_tokens_computed_ = 0;
  std::function<void()> on_progress_;
  StepId fail_submit_at_ = -1;
  StepId fail_wait_at_ = -1;
  absl::Status failure_;
};

}  // namespace binarymos
