// The door between scheduling and computing.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "engine/api/batch_plan.h"
#include "engine/api/sampling_params.h"
#include "engine/api/types.h"

namespace binarymos {

// What the runner must know of a sequence to sample its tokens. Views are read
// during AddSequence only.
struct SequenceInit {
  const SamplingParams* sampling = nullptr;
  uint32_t sample_index = 0;          // which of the request's n samples
  std::span<const TokenId> prompt;    // penalties: repetition sees these
  std::span<const TokenId> output{};  // generated before a preemption
};

// Computes steps. Owned by the Engine; confined to the serving-loop thread.
// Implementations: LlamaRunner (engine/llama_runner.h); AsyncRunner
// (engine/async_runner.h) around one that computes in Submit; fakes in tests.
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;

  // Steps that may be submitted before the oldest is waited for: 1 computes
  // inside Submit; 2 overlaps scheduling with computing.
  virtual int max_steps_in_flight() const = 0;

  // Gives `slot` to a sequence. REQUIRES: the slot is free.
  virtual void AddSequence(SlotId slot, const SequenceInit& init) = 0;

  // Frees `slot`. A step in flight may still hold a row for it: the row is
  // computed and its token is discarded by the caller.
  virtual void RemoveSequence(SlotId slot) = 0;

  // Starts computing `plan`. Steps are computed in the order submitted. After
  // an error nothing was submitted, and the engine cannot be used further:
  // such errors are the device's (UNAVAILABLE, INTERNAL), never a request's.
  // REQUIRES: !plan.empty(), fewer than max_steps_in_flight() steps in flight.
  virtual absl::Status Submit(const BatchPlan& plan) = 0;

  // Waits for the oldest step in flight and writes its result, reusing the
  // memory of `result`. Errors as Submit. REQUIRES: a step is in flight.
  virtual absl::Status Wait(StepResult& result) = 0;

  // Called after every layer, from the thread that computes: proof of life
  // during long steps. Must be cheap and thread-safe.
  virtual void SetProgressCallback(std::function<void()> callback) = 0;
};

}  // namespace binarymos
