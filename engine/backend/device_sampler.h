// Sampling where the logits are.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "engine/api/model_runner.h"
#include "engine/api/types.h"
#include "engine/core/tensor.h"

namespace binarymos {

// A row of logits to choose a token from.
struct DeviceSampleRow {
  SlotId slot = 0;
  int32_t position = 0;                      // where the token will stand
  int32_t logit_row = 0;                     // of the batch's logit rows
  int32_t num_logprobs = -1;                 // as in BatchRow
  std::span<const uint32_t> allowed_tokens;  // as in BatchRow
};

// What became of it. If num_logprobs >= 0, with what log-probabilities are made
// of (LogSoftmax in engine/sampler.h), of the logits as they came.
struct DeviceSample {
  struct Top {
    TokenId token = kNoToken;
    float logit = 0.0f;
  };
  TokenId token = kNoToken;  // kNoToken: not finite, or no token was left
  float logit = 0.0f;        // of the token
  float largest = 0.0f;      // logit
  uint64_t total_units = 0;  // the sum of exp(logit - largest) * 2^43
  std::span<const Top> top;  // the num_logprobs largest
};

// Chooses tokens on a device: for equal rows and histories the ones that
// Sampler (engine/sampler.h) chooses, and keeps parameters and history of its
// slots there. Owned by a backend and part of its steps: what is enqueued runs
// in the step's order, fails as the backend's operations do, and a token may be
// named by a later batch (BatchView::tokens) before the host knows it. Threads
// as Backend.
class DeviceSampler {
 public:
  static constexpr int kMaxLogprobs = 20;

  virtual ~DeviceSampler() = default;

  // Memory for slots [0, max_num_seqs) and calls of Sample with up to
  // `max_rows` rows, once, before the first step. RESOURCE_EXHAUSTED with the
  // arithmetic if there is none.
  virtual absl::Status Reserve(int max_num_seqs, int max_rows,
                               int vocab_size) = 0;

  // Gives `slot` to a sequence, from the next SetRows on. May be called outside
  // a step, and while one is in flight that still samples for the slot.
  virtual void SetSlot(SlotId slot, const SequenceInit& init) = 0;

  // The rows of this step, all of them; a slot at most once. REQUIRES: inside a
  // step, num_logprobs <= kMaxLogprobs.
  virtual void SetRows(std::span<const DeviceSampleRow> rows) = 0;
  // Chooses the tokens of rows [begin, end), at most max_rows, whose logits are
  // among `logits`: [.., vocab] f32 of the batch's logit rows from
  // `first_logit_row` on.
  virtual void Sample(const ConstTensorView& logits, int first_logit_row,
                      int begin, int end) = 0;

  // In the order of SetRows, of the step that Backend::AwaitStep waited for
  // last. Valid until that many steps more have begun as may be in flight.
  virtual std::span<const DeviceSample> samples() const = 0;
};

}  // namespace binarymos
